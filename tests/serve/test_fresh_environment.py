"""The registered models in an environment that holds their own requirements and nothing else of ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from amlp.models.predictor import Predictor
from amlp.params import parse_params
from amlp.registry.register import register
from amlp.registry.tracking import connect
from tests.support.scoring import check_server, pictures, scoring_server
from tests.support.stage_outputs import write_stage_outputs

# Gigabytes are installed, and downloaded where uv's cache has none of them.
pytestmark = [pytest.mark.serve, pytest.mark.timeout(1800)]

LOAD = """
import importlib.util, sys
from pathlib import Path
assert importlib.util.find_spec("amlp") is None
import mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
np.save("mask.npy", model.predict(Path("picture.png").read_bytes())["mask"])
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Path:
    """Stage outputs and a registry with both models."""
    root = tmp_path_factory.mktemp("root")
    write_stage_outputs(root)
    shutil.copy(migrated_database, root / "mlflow.db")
    params = parse_params({"register": {"tracking_uri": f"sqlite:///{root}/mlflow.db"}}, "test")
    register(params=params, root=root, data_md5="0" * 32)
    return root


@pytest.fixture(scope="module")
def model(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The segmenter's folder, as one downloads it."""
    import mlflow

    with connect(f"sqlite:///{root}/mlflow.db"):
        target = str(tmp_path_factory.mktemp("model"))
        return Path(mlflow.artifacts.download_artifacts("models:/amlp-segmenter@candidate", dst_path=target))


@pytest.fixture(scope="module")
def programs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`bin` of a new environment, made by the model's own requirements.txt."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    folder = tmp_path_factory.mktemp("environment")
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    for command in (
        [uv, "venv", "--python", sys.executable, str(folder / "venv")],
        [uv, "pip", "install", "--python", str(folder / "venv"), "--requirements", str(model / "requirements.txt")],
    ):
        done = subprocess.run(command, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    yield folder / "venv/bin"
    shutil.rmtree(folder)


def test_load_model_gives_evaluate_s_mask(root: Path, model: Path, programs: Path, tmp_path: Path) -> None:
    from amlp.data.pictures import read_image

    (tmp_path / "picture.png").write_bytes(pictures()["16 bits"])
    done = subprocess.run(
        [programs / "python", "-c", LOAD, str(model)],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = Predictor.load(root / "models/segmenter/segmenter.pt").mask(read_image(tmp_path / "picture.png"))
    np.testing.assert_array_equal(np.load(tmp_path / "mask.npy"), expected)


def test_the_server_gives_evaluate_s_masks_and_refuses_garbage(
    root: Path, model: Path, programs: Path, tmp_path: Path
) -> None:
    with scoring_server(programs, str(model), folder=tmp_path, environment={}) as address:
        check_server(address, root / "models/segmenter/segmenter.pt", tmp_path)
