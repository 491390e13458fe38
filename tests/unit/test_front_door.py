"""`import amlp`: what a program that uses a trained segmenter calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import amlp
from amlp.models.checkpoint import save
from amlp.models.encoder import EncoderPlan
from amlp.models.predictor import Predictor
from amlp.models.segmenter import Segmenter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What fine-tuning writes."""
    torch.manual_seed(0)
    plan = {"channels": 1, "height": 32, "width": 32, "patch": 8, "dim": 24, "depth": 2, "heads": 3}
    values = {"plan": plan, "channels": 8, "input": {"mean": (0.4,), "std": (0.2,)}, "flip_average": True}
    state = Segmenter(EncoderPlan(**plan), 8).state_dict()
    save(tmp_path / "segmenter.pt", {"kind": "amlp-segmenter", **values, "state": state})
    return tmp_path


def test_importing_amlp_loads_nothing_but_the_standard_library(project: Path) -> None:
    code = "import sys; before = set(sys.modules); import amlp; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded - set(sys.stdlib_module_names) == {"amlp"}


def test_a_file_its_folder_and_its_path_give_the_same_masks(folder: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)
    expected = Predictor.load(folder / "segmenter.pt").mask(image) != 0
    for model in (folder, folder / "segmenter.pt", str(folder)):
        [mask] = amlp.load(model).predict([image])
        np.testing.assert_array_equal(mask, expected)


def test_mistakes_name_what_was_expected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(amlp.UserError, match=r"device 'gpu': can't be used .*; try 'cpu'"):
        amlp.load(folder, device="gpu")
    with pytest.raises(amlp.UserError, match=r"nowhere\.pt: no such file; expected segmenter\.pt, its folder, or"):
        amlp.load("nowhere.pt")
    with pytest.raises(amlp.UserError, match=r"other\.db not found; name MLflow's address"):
        amlp.load("models:/amlp-segmenter@champion", tracking_uri=f"sqlite:///{folder}/other.db")
    (folder / "segmenter.pt").write_bytes(b"no checkpoint")
    with pytest.raises(amlp.UserError, match=r"segmenter\.pt: not readable as a amlp-segmenter checkpoint"):
        amlp.load(folder)
