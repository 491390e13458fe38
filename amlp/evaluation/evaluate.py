"""Stage `evaluate`: score the segmenter, its from-scratch twin and the threshold baseline on the test split.

Masks are predicted and compared at the images' native size, one image at a time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amlp.data.images import read_image, read_mask
from amlp.data.shards import ShardedSplit
from amlp.errors import UserError
from amlp.evaluation.bootstrap import group_bootstrap
from amlp.evaluation.metrics import RULE, score_case
from amlp.evaluation.overlays import Example, draw_overlays, select_examples
from amlp.evaluation.threshold import Threshold, best_threshold
from amlp.files import atomic_dir, write_json
from amlp.models.predictor import Predictor
from amlp.params import EvaluateParams
from amlp.progress import progress

# A raw image, (H, W) or (H, W, 3), to its mask, (H, W) 0/1.
Predict = Callable[[NDArray[Any]], NDArray[Any]]

# Figure in the summary -> its line in the printed table.
FIGURES = {
    "dsc": "DSC, all images",
    "dsc_lesion": "DSC, images with a lesion",
    "ppv": "PPV",
    "sensitivity": "sensitivity",
    "hd95": "HD95 (pixels)",
    "false_positive_rate": "false-positive rate",
}
_BATCH = 256
_EXAMPLES = 4
_BINS = 20


def evaluate(
    *,
    params: EvaluateParams,
    seed: int,
    ingest: Path,
    shards: Path,
    segmenter: Path,
    scratch: Path | None,
    out: Path,
) -> dict[str, Any]:
    """Score trained models and the baseline; write the evaluation folder.

    Args:
        params: bootstrap settings.
        seed: of the bootstrap.
        ingest: folder of the native-size images and masks.
        shards: folder with the index of the splits and the training shards.
        segmenter: folder that holds `segmenter.pt`.
        scratch: the same of the model trained from scratch, if there is one.
        out: the evaluation folder, see `evaluate_models`.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: a model or an image is missing or unreadable, or no test case has a mask.
    """
    folders = {"segmenter": segmenter} | ({} if scratch is None else {"scratch": scratch})
    models: dict[str, Predict] = {
        name: Predictor.load(folder / "segmenter.pt").mask for name, folder in folders.items()
    }
    return evaluate_models(models, params=params, seed=seed, ingest=ingest, shards=shards, out=out)


def evaluate_models(
    models: Mapping[str, Predict], *, params: EvaluateParams, seed: int, ingest: Path, shards: Path, out: Path
) -> dict[str, Any]:
    """Score any predictors, and the threshold baseline beside them, on the test split.

    Writes cases.csv (a row a model and image), summary.json, metrics.json (flat), dsc_histogram.csv (images with a
    lesion in each twentieth of DSC) and overlays/{best,median,worst}.png, chosen by the first model's DSC.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: an image is missing or unreadable, or no test or training case has a mask.
    """
    test = ShardedSplit.open(shards, "test").index
    test = test[test["labelled"]].sort_values("case_id")
    if test.empty:
        raise UserError(f"{shards / 'index.parquet'}: no test case has a mask; add masks, or raise test_fraction.")
    threshold = best_threshold(_training_batches(shards))
    models = {**models, "threshold": threshold.mask}
    cases, digest = score_cases(models, test=test, ingest=ingest)
    summary = _summarise(cases, params=params, seed=seed, threshold=threshold, digest=digest)

    with atomic_dir(out) as folder:
        cases.to_csv(folder / "cases.csv", index=False, lineterminator="\n")
        write_json(folder / "summary.json", summary)
        write_json(folder / "metrics.json", _flatten(summary))
        _dsc_histogram(cases).to_csv(folder / "dsc_histogram.csv", index=False, lineterminator="\n")
        _write_overlays(folder / "overlays", models, cases=cases, test=test, ingest=ingest)
    print(_table(summary))
    print(f"wrote {out}: cases.csv, summary.json, metrics.json, dsc_histogram.csv, overlays/*.png")
    return summary


def score_cases(models: Mapping[str, Predict], *, test: pd.DataFrame, ingest: Path) -> tuple[pd.DataFrame, str]:
    """Score models image by image.

    Args:
        models: name -> function from a raw image to a mask of its size.
        test: rows of the shards' index.
        ingest: folder that the rows' paths start from.

    Returns:
        The table of cases.csv, ordered by model and row, and the hash of the test split: SHA-256 over the sorted case
        ids and the *decoded* pixels of image and mask, so that another PNG encoder doesn't make another test split.

    Raises:
        UserError: a file is missing or unreadable, or an image and its mask differ in size.
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    digests = []
    with progress(len(test), "evaluate", "images") as bar:
        for case in test.itertuples():
            image, truth = _read_case(ingest / case.image, ingest / case.mask)
            digests.append((str(case.case_id), _pixel_digest(image), _pixel_digest(truth)))
            for name, predict in models.items():
                mask = predict(image)
                rows[name].append(
                    {
                        "model": name,
                        "case_id": case.case_id,
                        "group": case.group,
                        "label": case.label,
                        "lesion_fraction": float(truth.mean()),
                        **dataclasses.asdict(score_case(truth=truth, predicted=mask)),
                        "predicted_fraction": float((mask != 0).mean()),
                    }
                )
            bar.update()
    digest = hashlib.sha256(json.dumps(sorted(digests)).encode()).hexdigest()
    return pd.DataFrame([row for name in models for row in rows[name]]), digest


def _read_case(image_path: Path, mask_path: Path) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    image, truth = read_image(image_path), read_mask(mask_path)
    if image.shape[:2] != truth.shape:
        raise UserError(f"{mask_path}: size {truth.shape}, its image's is {image.shape[:2]}; run ingest again.")
    return image, truth


def _pixel_digest(pixels: NDArray[Any]) -> str:
    head = f"{pixels.dtype.str} {pixels.shape} "
    return hashlib.sha256(head.encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _training_batches(shards: Path) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    split = ShardedSplit.open(shards, "train")
    rows = np.flatnonzero(split.index["labelled"].to_numpy(dtype=bool))
    if not len(rows):
        raise UserError(f"{shards}: no training case has a mask, so there is no threshold to compare with; add masks.")
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        yield split.images(batch), split.masks(batch)


def with_figures(cases: pd.DataFrame) -> pd.DataFrame:
    """Add the figures that count for some images only: DSC of those with a lesion, false positives of the others."""
    lesion = cases["lesion_fraction"] > 0
    return cases.assign(
        dsc_lesion=cases["dsc"].where(lesion),
        false_positive_rate=(cases["predicted_fraction"] > 0).astype(float).where(~lesion),
    )


def _summarise(
    cases: pd.DataFrame, *, params: EvaluateParams, seed: int, threshold: Threshold, digest: str
) -> dict[str, Any]:
    """Put each figure's mean and interval together; the paired ones are the first model less each other model."""
    figures = with_figures(cases).set_index(["case_id", "group"])
    models = {name: table[list(FIGURES)] for name, table in figures.groupby("model", sort=False)}
    first, *others = models
    columns = models | {f"{first}-{other}": models[first] - models[other] for other in others}
    wide = pd.concat(columns, axis=1)
    intervals = group_bootstrap(
        wide,
        wide.index.get_level_values("group").to_numpy(),
        samples=params.bootstrap_samples,
        confidence=params.confidence,
        seed=seed,
    )
    summary: dict[str, dict[str, Any]] = {name: {} for name in columns}
    for (name, figure), interval in intervals.items():
        entry = {key: _null(value) for key, value in dataclasses.asdict(interval).items()}
        summary[name][figure] = entry | {"undefined": len(wide) - interval.cases}
    summary["threshold"] |= {
        "threshold": threshold.value,
        "polarity": threshold.polarity,
        "train_dsc": threshold.train_dsc,
    }
    return {
        "test": {
            "cases": len(wide),
            "lesion_cases": int(wide[first]["dsc_lesion"].notna().sum()),
            "groups": int(wide.index.get_level_values("group").nunique()),
            "hash": digest,
        },
        "rule": RULE,
        "confidence": params.confidence,
        "models": {name: summary[name] for name in models},
        "paired": {name: summary[name] for name in columns if name not in models},
    }


def _null(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _flatten(summary: Mapping[str, Any]) -> dict[str, float]:
    """Means by `model_figure`, with the DSC's interval: what `dvc metrics` shows; undefined figures are left out."""
    flat: dict[str, float | None] = {"test_cases": summary["test"]["cases"]}
    for model, entry in summary["models"].items():
        flat |= {f"{model}_{figure}": entry[figure]["mean"] for figure in FIGURES}
        flat |= {f"{model}_dsc_{end}": entry["dsc"][end] for end in ("low", "high")}
        flat[f"{model}_hd95_undefined"] = entry["hd95"]["undefined"]
    return {key: value for key, value in flat.items() if value is not None}


def _dsc_histogram(cases: pd.DataFrame) -> pd.DataFrame:
    """Count images with a lesion by DSC: column `dsc` is the middle of a bin, the others are models."""
    edges = np.linspace(0.0, 1.0, _BINS + 1)
    lesion = cases[cases["lesion_fraction"] > 0]
    counts = {
        name: np.histogram(lesion.loc[lesion["model"] == name, "dsc"], bins=edges)[0]
        for name in cases["model"].unique()
    }
    return pd.DataFrame({"dsc": ((edges[:-1] + edges[1:]) / 2).round(4), **counts})


def _write_overlays(
    folder: Path, models: Mapping[str, Predict], *, cases: pd.DataFrame, test: pd.DataFrame, ingest: Path
) -> None:
    first = next(iter(models))
    dsc = cases.set_index(["model", "case_id"])["dsc"]
    paths = test.set_index("case_id")[["image", "mask"]]
    for kind, case_ids in select_examples(cases, model=first, count=_EXAMPLES).items():
        examples = []
        for case_id in case_ids:
            image, truth = _read_case(*(ingest / path for path in paths.loc[case_id]))
            # Predicted once more: keeping every mask would take memory that grows with the test split.
            predicted = {name: (predict(image), float(dsc[name, case_id])) for name, predict in models.items()}
            examples.append(Example(name=case_id, image=image, truth=truth, predicted=predicted))
        title = f"{kind.capitalize()} test images with a lesion, by DSC of the {first}"
        draw_overlays(folder / f"{kind}.png", examples, models=list(models), title=title)


def _table(summary: Mapping[str, Any]) -> str:
    test, models = summary["test"], summary["models"]
    lines = [
        f"test split: {test['cases']} images, {test['lesion_cases']} with a lesion, {test['groups']} groups; "
        f"mean [{summary['confidence']:.0%} interval, bootstrap over groups]",
        f"{'':26}" + "".join(f"{name:>26}" for name in models),
    ]
    for figure, label in FIGURES.items():
        lines.append(f"{label:26}" + "".join(f"{_text(entry[figure]):>26}" for entry in models.values()))
    undefined = "".join(f"{entry['hd95']['undefined']:>26}" for entry in models.values())
    lines.append(f"{'  HD95 undefined (images)':26}{undefined}")
    for name, entry in summary["paired"].items():
        lines.append(f"{name}, paired: DSC {_text(entry['dsc'], sign='+')}")
    baseline = Threshold(*(models["threshold"][key] for key in ("threshold", "polarity", "train_dsc")))
    lines.append(f"threshold: {baseline} (best on the training split: DSC {baseline.train_dsc:.3f})")
    lines.append(f"rule: {summary['rule']}")
    return "\n".join(lines)


def _text(figure: Mapping[str, Any], sign: str = "") -> str:
    if figure["mean"] is None:
        return "undefined"
    if figure["low"] is None:
        return f"{figure['mean']:{sign}.3f} [too few groups]"
    return f"{figure['mean']:{sign}.3f} [{figure['low']:{sign}.3f}, {figure['high']:{sign}.3f}]"
