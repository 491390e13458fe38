"""A study's file that names three variants, and what reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from amlp.study.plan import Study, load_study

VARIANTS = {
    "scratch": {"title": "from scratch", "pretrain": False, "seeds": [0, 1]},
    "full": {"title": "AMLP", "seeds": [0, 1]},
    "mae": {"title": "MAE", "params": {"pretrain.mps.enabled": False}, "seeds": [0]},
}
FILE: dict[str, Any] = {
    "name": "small",
    "title": "Small",
    "recipe": "recipe.yaml",
    "overrides": {"finetune.batch": 4},
    "reference": "full",
    "variants": VARIANTS,
    "fractions": {1.0: {}, 0.1: {"epochs": 100}},
}


def write(folder: Path, **changes: Any) -> Path:
    (folder / "recipe.yaml").write_text("encoder: {dim: 48}\nfinetune: {epochs: 7, batch: 16}\n")
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(FILE | changes, sort_keys=False))
    return path


def load(folder: Path, **changes: Any) -> Study:
    return load_study(write(folder, **changes))
