"""What all tests share: a quiet environment, time limits, property-test settings, an MLflow database and servers."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from amlp import logs
from amlp.environment import quiet
from devtools.servers import MlflowServer, PostgresServer, S3Server, mlflow_server, postgres, seaweedfs
from tests.support.servers import or_skip

# Before anything imports ray, mlflow, great_expectations or matplotlib.
quiet()
# As every command line does.
logs.configure()
os.environ.setdefault("MPLBACKEND", "Agg")
# The command and the pipeline write the same pseudonyms for the same patients.
os.environ.setdefault("AMLP_PSEUDONYM_KEY", "the key of all tests, which is no secret")
if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker has a core, not all of them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

# Else the end that `timeout` and the like make of us leaves the servers of the session running.
signal.signal(signal.SIGTERM, signal.default_int_handler)
# A shell's job in the background ignores SIGINT, and so does what it starts: tests of an interrupt would hang.
signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT = Path(__file__).parents[1]
# Far above what they take: for a machine that is busy with other work.
INTEGRATION_SECONDS = 900

# Derandomized: a failure is found by who caused it. No deadline: shared machines stall.
settings.register_profile(
    "amlp", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("amlp")


# Files that take a minute or more, the longest first: begun last, one keeps a process waiting for the other.
SLOWEST = (
    "test_dvc.py", "test_tutorial.py", "test_local_run.py", "test_resume.py", "test_study.py", "test_history.py",
    "test_workers.py", "test_wheel.py", "test_own_images.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST))
    for item in items:
        if item.path.is_relative_to(PROJECT / "tests/integration") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(INTEGRATION_SECONDS))


@pytest.fixture(scope="session")
def project() -> Path:
    """The folder that holds dvc.yaml and params.yaml."""
    return PROJECT


@pytest.fixture(scope="session")
def busi() -> Path:
    """The BUSI images' folder; tests that need it are skipped without."""
    folder = os.environ.get("BUSI_DIR")
    if not folder:
        pytest.skip("BUSI_DIR is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: creating its tables takes seconds, copying it takes none."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking_uri(tmp_path: Path, migrated_database: Path) -> str:
    """Address of a test's own empty MLflow database, in its `tmp_path`."""
    path = tmp_path / "mlflow.db"
    shutil.copy(migrated_database, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server; tests that need it are skipped where its binary is missing."""
    with or_skip(seaweedfs(tmp_path_factory.mktemp("s3"))) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A real PostgreSQL server; tests that need it are skipped where it is not installed."""
    with or_skip(postgres(tmp_path_factory.mktemp("postgres"))) as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_platform(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, s3_server: S3Server
) -> Iterator[MlflowServer]:
    """A real MLflow server with accounts, on PostgreSQL and S3; one for each session, as it starts slowly."""
    s3_server.client().create_bucket(Bucket="amlp-mlflow")
    folder = tmp_path_factory.mktemp("mlflow-server")
    with or_skip(mlflow_server(folder, database_uri=postgres_server.uri, s3=s3_server, bucket="amlp-mlflow")) as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Address of a test's own empty bucket; the environment holds the credentials, and the cache is the test's own."""
    from amlp.storage import s3_client

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AMLP_CACHE", str(tmp_path / "cache"))
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_client().create_bucket(Bucket=name)
    return f"s3://{name}"
