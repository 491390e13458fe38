"""The gate on what evaluation really writes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from amlp.evaluation.evaluate import score_cases, with_figures
from amlp.params import GateParams
from amlp.promotion.decision import Decision, FrozenSplit, Side
from amlp.promotion.gate import decide

PARAMS = GateParams(min_groups=8, bootstrap_samples=1000)


@pytest.fixture
def test_split(tmp_path: Path) -> pd.DataFrame:
    """Rows of an index with their files: 16 images of 8 patients, every other patient without a lesion."""
    rows = []
    for number in range(16):
        patient, name = number // 2, f"case_{number:02d}.png"
        mask = np.zeros((40, 50), dtype=bool)
        if patient % 2:
            mask[10 : 20 + number // 2, 12:30] = True
        image = np.where(mask, 60, 160).astype(np.uint8) + np.random.default_rng(number).integers(
            0, 20, mask.shape, dtype=np.uint8
        )
        for folder, picture in (("images", Image.fromarray(image)), ("masks", Image.fromarray(mask).convert("L"))):
            (tmp_path / folder).mkdir(exist_ok=True)
            picture.save(tmp_path / folder / name)
        paths = {"image": f"images/{name}", "mask": f"masks/{name}"}
        label = "lesion" if patient % 2 else "normal"
        rows.append({"case_id": name[:-4], "group": patient, "label": label, **paths})
    return pd.DataFrame(rows)


def sharp(image: np.ndarray) -> np.ndarray:
    return image < 100


def shifted(image: np.ndarray) -> np.ndarray:
    return np.roll(sharp(image), 4, axis=1)


def nervous(image: np.ndarray) -> np.ndarray:
    """As `sharp`, and a false positive wherever there is nothing."""
    mask = sharp(image)
    mask[0, 0] |= not mask.any()
    return mask


def compare(
    index: pd.DataFrame, folder: Path, champion: Callable[..., Any] | None, challenger: Callable[..., Any]
) -> tuple[Decision, pd.DataFrame]:
    """What a caller does: score all of them in one job, and hand the tables over."""
    models = {"challenger": challenger, "baseline": lambda image: np.zeros(image.shape, dtype=bool)}
    models |= {} if champion is None else {"champion": champion}
    cases, digest = score_cases(models, test=index, ingest=folder)
    sides = {name: Side(name, f"sha256 of {name}", digest, "run 7", cases[cases["model"] == name]) for name in models}
    decision = decide(
        challenger=sides["challenger"], champion=sides.get("champion"), baseline=sides["baseline"],
        split=FrozenSplit(digest, frozenset(index["case_id"])), params=PARAMS,
    )  # fmt: skip
    return decision, cases


def test_models_scored_in_one_job_are_judged(test_split: pd.DataFrame, tmp_path: Path) -> None:
    assert compare(test_split, tmp_path, shifted, sharp)[0].outcome == "promote"
    assert compare(test_split, tmp_path, sharp, shifted)[0].reason == "not_better"
    assert compare(test_split, tmp_path, sharp, sharp)[0].reason == "tie"
    first = compare(test_split, tmp_path, None, sharp)[0]
    assert (first.outcome, first.role) == ("promote", "baseline")


def test_its_figures_are_those_of_the_evaluation(test_split: pd.DataFrame, tmp_path: Path) -> None:
    decision, cases = compare(test_split, tmp_path, shifted, nervous)
    assert [(figure.label, figure.kind) for figure in decision.classes] == [
        ("lesion", "dsc"), ("normal", "false_positive_rate")
    ]  # fmt: skip
    figures = with_figures(cases).groupby("model")[["dsc", "dsc_lesion", "false_positive_rate"]].mean()
    assert decision.effect is not None
    for figure, column in zip((decision.effect, *decision.classes), figures.columns, strict=True):
        assert figure.reference == pytest.approx(figures.loc["champion", column])
        assert figure.challenger == pytest.approx(figures.loc["challenger", column])
    assert (decision.outcome, decision.classes[1].difference) == ("keep", 1.0)


def test_the_gate_needs_no_torch_and_no_mlflow() -> None:
    code = "import sys, amlp.promotion.gate; print(sorted({'torch', 'mlflow', 'monai', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
