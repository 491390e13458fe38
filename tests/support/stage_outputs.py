"""Small outputs of all stages before `register`, as those stages write them, made without running any."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from amlp.data.pictures import write_png
from amlp.files import write_json
from amlp.models.checkpoint import InputStats, save, save_encoder
from amlp.models.encoder import Encoder, EncoderPlan
from amlp.models.segmenter import Segmenter

PLAN = EncoderPlan(channels=1, height=32, width=32, patch=8, dim=16, depth=2, heads=2)
STATS = InputStats(mean=(0.4,), std=(0.2,))
SIZES = ((40, 56), (33, 71), (64, 48))


def write_stage_outputs(root: Path, *, labels: tuple[str, ...] = ("lesion", "normal"), epochs: int = 6) -> None:
    """Write the folders of every stage under `root`; random weights, plausible tables and pictures."""
    random = np.random.default_rng(3)
    _write_data(root / "data", labels, random)
    _write_models(root / "models", epochs, random)
    _write_evaluation(root / "evaluation", labels, random)


def _write_data(data: Path, labels: tuple[str, ...], random: np.random.Generator) -> None:
    rows = []
    for number in range(24):
        label = labels[number % len(labels)]
        height, width = SIZES[number % len(SIZES)]
        name = f"case_{number:02d}"
        (data / "ingest" / "images").mkdir(parents=True, exist_ok=True)
        (data / "ingest" / "masks").mkdir(parents=True, exist_ok=True)
        write_png(data / f"ingest/images/{name}.png", random.integers(0, 256, (height, width), dtype=np.uint8))
        write_png(data / f"ingest/masks/{name}.png", np.zeros((height, width), dtype=bool))
        split = "test" if number < 6 else "val" if number < 10 else "train"
        rows.append(
            {
                "case_id": name,
                "split": split,
                "group": number // 2,
                "label": label,
                "labelled": True,
                "shard": 0,
                "row": number,
                "image": f"images/{name}.png",
                "mask": f"masks/{name}.png",
                "height": height,
                "width": width,
                "lesion_fraction": 0.1,
            }
        )
    index = pd.DataFrame(rows)
    manifest = index[["case_id", "image", "mask", "label", "height", "width"]].assign(patient=None, channels=1, bits=8)
    manifest.to_parquet(data / "ingest" / "manifest.parquet")
    patients = {"patients": len(rows), "without_patient": 0}
    write_json(data / "ingest" / "summary.json", {"cases": len(rows), **patients})
    write_json(data / "validate" / "metrics.json", {"cases": len(rows), "bad_cases": 0})
    (data / "validate" / "bad_cases.csv").write_text("case_id,reason\n", encoding="utf-8")
    write_json(data / "validate" / "expectations.json", {"success": True})
    counts = {split: dict(part["label"].value_counts()) for split, part in index.groupby("split")}
    write_json(
        data / "shards" / "metrics.json",
        {
            **{split: {label: int(count) for label, count in part.items()} for split, part in counts.items()},
            "scores": {
                "auc": 0.87,
                "recall": 0.61,
                "enrichment": 2.6,
                "enrichment_low": 2.2,
                "enrichment_high": 3.1,
                "images": 14,
            },
        },
    )
    write_json(data / "shards" / "stats.json", {**asdict(STATS), "channels": 1, "height": 32, "width": 32})
    index.to_parquet(data / "shards" / "index.parquet")


def _write_models(models: Path, epochs: int, random: np.random.Generator) -> None:
    torch.manual_seed(5)
    encoder = Encoder(PLAN)
    save_encoder(models / "encoder" / "encoder.pt", encoder, STATS)
    epoch = np.arange(1, epochs + 1)
    fall = 1 / (1 + epoch)
    pd.DataFrame(
        {
            "epoch": epoch,
            "step": epoch * 9,
            "ratio": np.linspace(0.25, 0.75, epochs),
            "loss": fall,
            "reconstruction": fall,
            "rrl": fall * 1.1,
            "ccl": fall * 0.3,
            "lr": fall * 1e-3,
            "grad_norm": fall + 1,
            "visible_tokens": epoch * 5000,
            "masked_lesion_share": np.linspace(0.6, 0.9, epochs),
            "masked_background_share": np.linspace(0.2, 0.73, epochs),
            "seconds": epoch * 1.5,
        }
    ).to_csv(models / "encoder" / "history.csv", index=False)
    pd.DataFrame(
        {
            "epoch": epoch,
            "score_recall": 0.55,
            "score_enrichment": 2.6,
            "agreement": 0.7,
            "error_lesion": fall * 0.8,
            "error_background": fall,
            "refine_weight": np.linspace(0, 0.8, epochs),
            "random_images": 3,
            "probe_auc": np.linspace(0.6, 0.8, epochs),
        }
    ).to_csv(models / "encoder" / "diagnostics.csv", index=False)
    write_json(
        models / "encoder" / "metrics.json",
        {"loss": float(fall[-1]), "seconds": 9.0, "probe_auc": 0.8, "probe_auc_untrained": 0.61},
    )
    for name in ("reconstructions", "masks", "scores"):
        _write_picture(models / "encoder" / "pictures" / f"{name}.png", random)

    segmenter = Segmenter(PLAN, channels=8)
    state = segmenter.state_dict()
    # Random weights must still find something, or every mask in the tests is the same.
    state["head.bias"] = torch.zeros_like(state["head.bias"])
    for name in ("segmenter", "scratch"):
        save(
            models / name / "segmenter.pt",
            {
                "kind": "amlp-segmenter",
                "plan": asdict(PLAN),
                "channels": 8,
                "input": asdict(STATS),
                "flip_average": True,
                "state": state,
            },
        )
        pd.DataFrame(
            {"epoch": epoch, "loss": fall, "lr": fall * 1e-3, "val_dsc": 0.8 - fall / 2, "seconds": epoch * 2.0}
        ).to_csv(models / name / "history.csv", index=False)
        pd.DataFrame({"seconds": epoch * 2.0, "cpu_percent": 190.0, "memory_mb": 800.0}).to_csv(
            models / name / "system.csv", index=False
        )
        write_json(models / name / "metrics.json", {"val_dsc": 0.75, "best_epoch": int(epochs), "labelled_images": 14})
        write_json(models / name / "loading.json", None)


def _interval(mean: float) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.03, "high": mean + 0.03, "cases": 6, "groups": 3, "undefined": 0}


def _write_evaluation(evaluation: Path, labels: tuple[str, ...], random: np.random.Generator) -> None:
    dsc = {"segmenter": 0.83, "scratch": 0.78, "threshold": 0.31}
    figures = ("dsc", "dsc_lesion", "ppv", "sensitivity", "hd95", "false_positive_rate")
    models: dict[str, dict[str, Any]] = {
        name: {figure: _interval(mean) for figure in figures} for name, mean in dsc.items()
    }
    for entry in models.values():
        entry["hd95"] = {"mean": None, "low": None, "high": None, "cases": 0, "groups": 0, "undefined": 6}
    models["threshold"] |= {"threshold": 61, "polarity": "dark", "train_dsc": 0.33}
    write_json(
        evaluation / "summary.json",
        {
            "test": {"cases": 6, "lesion_cases": 5, "groups": 3, "hash": "a" * 64},
            "rule": "An image without a lesion scores DSC 1 when the predicted mask is empty too, else 0.",
            "confidence": 0.95,
            "models": models,
            "paired": {
                f"segmenter-{other}": {figure: _interval(0.05) for figure in figures}
                for other in ("scratch", "threshold")
            },
        },
    )
    write_json(evaluation / "metrics.json", {"segmenter_dsc": 0.83, "test_cases": 6})
    cases = [
        {
            "model": name,
            "case_id": f"case_{number:02d}",
            "group": number // 2,
            "label": labels[number % len(labels)],
            "lesion_fraction": 0.1,
            "dsc": float(np.clip(mean + random.normal(0, 0.05), 0, 1)),
            "ppv": mean,
            "sensitivity": mean,
            "hd95": 4.0,
            "predicted_fraction": 0.1,
        }
        for name, mean in dsc.items()
        for number in range(6)
    ]
    pd.DataFrame(cases).to_csv(evaluation / "cases.csv", index=False)
    for name in ("best", "median", "worst"):
        _write_picture(evaluation / "overlays" / f"{name}.png", random)


def _write_picture(path: Path, random: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (60, 120), dtype=np.uint8)).save(path)
