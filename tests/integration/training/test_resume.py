"""A training that is killed goes on from its last checkpoint and ends as if nothing had happened."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from tests.support.tiny import settings, write_shards

EPOCHS = 30
COMMAND = ["finetune", "--from-scratch"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "data" / "shards")
    decoder = {"dim": 24, "depth": 1, "heads": 3}
    params = settings(
        pretrain={"epochs": EPOCHS, "batch": 6, "checkpoint_epochs": 1, "decoder": decoder},
        finetune={"epochs": EPOCHS, "batch": 6, "channels": 8, "checkpoint_epochs": 1}
        | {"pseudo_labels": "clusters", "pseudo_label_epochs": EPOCHS},
    )
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump(by_alias=True)))
    return tmp_path


def start(folder: Path, command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "amlp", *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder: Path, command: list[str]) -> str:
    process = start(folder, command)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def kill_after_a_checkpoint(folder: Path, file: str, epoch: int) -> None:
    process = start(folder, COMMAND)
    deadline = time.monotonic() + 200
    while True:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint in time"
        found = list((folder / ".amlp" / "state").glob(f"finetune-*/{file}"))
        if found and torch.load(found[0], weights_only=True)["epoch"] >= epoch:
            break
        time.sleep(0.02)  # between looks at another process's file; what is waited for is the checkpoint
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_killed_fine_tuning_ends_like_an_uninterrupted_one(folder):
    """As tests/integration/test_dvc.py shows of pre-training."""
    out = folder / "models" / "scratch"
    finish(folder, COMMAND)
    expected = (out / "segmenter.pt").read_bytes()
    history = pd.read_csv(out / "history.csv")
    shutil.rmtree(out)

    # Once during pseudo-label pre-training, once while it learns the masks.
    for file in ("pseudo-labels/last.pt", "last.pt"):
        kill_after_a_checkpoint(folder, file, epoch=3)
        assert not out.exists(), "killed too late to show anything"
    assert "Resuming after epoch" in finish(folder, COMMAND)
    assert (out / "segmenter.pt").read_bytes() == expected
    resumed = pd.read_csv(out / "history.csv")
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), history.drop(columns="seconds"))
    assert not list((folder / ".amlp" / "state").glob("finetune-*")), "the state is forgotten in the end"
