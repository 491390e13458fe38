"""The trainings on a GPU: tensors that stay behind on the CPU are found there alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from amlp.training.finetune import finetune
from amlp.training.pretrain import pretrain
from tests.support.tiny import settings, write_shards

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_trainings_run_on_a_gpu(tmp_path: Path, precision: str) -> None:
    shards, state = write_shards(tmp_path / "shards", cases=48), tmp_path / "state"
    chosen = {"precision": precision}
    params = settings(pretrain=chosen, finetune=chosen | {"epochs": 6, "lr": 0.005})
    pretrain(params=params, shards=shards, out=tmp_path / "encoder", state=state)
    drawn = pd.read_csv(tmp_path / "encoder" / "history.csv")
    assert drawn["masked_lesion_share"].between(0, 1).all()
    metrics = finetune(
        params=params, shards=shards, encoder=tmp_path / "encoder", out=tmp_path / "segmenter", state=state
    )
    assert metrics["pseudo_label_seconds"] > 0 and metrics["val_dsc"] > 0.5
    assert pd.read_csv(tmp_path / "segmenter" / "system.csv")["gpu_memory_mb"].min() > 0
