"""The overlays of k8s/, rendered once; dev with secrets of its own, so that nobody's are read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.kubernetes_objects import Object, render


@pytest.fixture(scope="session")
def dev_copy(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of k8s/ with new secrets."""
    copy = tmp_path_factory.mktemp("k8s") / "k8s"
    shutil.copytree(project / "k8s", copy, ignore=shutil.ignore_patterns("secrets", "__pycache__"))
    subprocess.run([sys.executable, str(copy / "dev_secrets.py")], check=True, capture_output=True)
    runs = copy / "overlays/single-user/runs/secrets"
    runs.mkdir()
    for name in ("s3.env", "mlflow-client.env"):
        shutil.copy(copy / "overlays/dev/secrets" / name, runs)
    return copy


@pytest.fixture(scope="session")
def single_user(dev_copy: Path) -> list[Object]:
    return render(dev_copy / "overlays/single-user")


@pytest.fixture(scope="session")
def dev(dev_copy: Path) -> list[Object]:
    return render(dev_copy / "overlays/dev")


@pytest.fixture(scope="session")
def prod(project: Path) -> list[Object]:
    return render(project / "k8s/overlays/prod")


@pytest.fixture(params=["dev", "prod"])
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """The objects of an overlay, each in turn."""
    return request.getfixturevalue(request.param)
