"""Stage `evaluate`: score the segmenter, its from-scratch twin and the threshold baseline on the test split.

    amlp evaluate                   # the test split
    amlp evaluate --split unused    # training images whose masks fine-tuning didn't see: settings can be tried on
                                    # these, and the test split stays untouched

Masks are predicted and compared at the images' native size, one image at a time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amlp.data.labels import labelled_subset, unused_labels
from amlp.data.pictures import read_image, read_mask
from amlp.data.shards import ShardedSplit, cases_digest
from amlp.errors import UserError
from amlp.evaluation.overlays import Example, draw_overlays, select_examples
from amlp.evaluation.summary import Score, ScoredImages, Scores, Split, Summary
from amlp.evaluation.threshold import Threshold, best_threshold
from amlp.files import atomic_dir, read_json, write_json
from amlp.layout import EvaluationFolder, SegmenterFolder
from amlp.metrics.bootstrap import group_bootstrap
from amlp.metrics.figures import FIGURES, in_order
from amlp.metrics.segmentation import RULE, score_case
from amlp.models.predictor import Predictor
from amlp.params import EvaluateParams
from amlp.progress import progress

logger = logging.getLogger(__name__)

# A raw image, (H, W) or (H, W, 3), to its mask, (H, W) 0/1.
Predict = Callable[[NDArray[Any]], NDArray[Any]]
# As text names the images.
SPLITS: dict[Split, str] = {"test": "test images", "unused": "training images whose masks fine-tuning did not see"}

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
    split: Split = "test",
    label_fraction: float = 1.0,
) -> dict[str, Any]:
    """Score trained models and the baseline; write the evaluation folder.

    Args:
        params: bootstrap settings.
        seed: of the bootstrap; for `unused` the one that fine-tuning had.
        ingest: folder of the native-size images and masks.
        shards: folder with the index of the splits and the training shards.
        segmenter: folder that holds `segmenter.pt`.
        scratch: the same of the model trained from scratch, if there is one.
        out: the evaluation folder, see `evaluate_models`.
        split: what to score on.
        label_fraction: share of the labels that the models were fine-tuned on; for `unused`.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: a model or an image is missing or unreadable, or there is no case to score on.
    """
    folders = {"segmenter": segmenter} | ({} if scratch is None else {"scratch": scratch})
    models: dict[str, Predict] = {
        name: Predictor.load(SegmenterFolder(folder).weights).mask for name, folder in folders.items()
    }
    if split == "unused":
        for folder in folders.values():
            _check_labels(folder, shards, label_fraction, seed)
    return evaluate_models(
        models, params=params, seed=seed, ingest=ingest, shards=shards, out=out, split=split,
        label_fraction=label_fraction,
    )  # fmt: skip


def _check_labels(folder: Path, shards: Path, fraction: float, seed: int) -> None:
    """Refuse parameters that are not those of the fine-tuning: images would count as unused that were trained on."""
    file = SegmenterFolder(folder).labels
    if not file.is_file():
        raise UserError(f"{file}: not found, so it is not known which masks {folder} was trained on; fine-tune again.")
    trained = read_json(file)
    index = ShardedSplit.open(shards, "train").index
    expected = index.iloc[labelled_subset(index, fraction, seed)]
    if trained["cases"] != cases_digest(expected):
        raise UserError(
            f"{file}: trained on {trained['images']} images with a mask that are not the {len(expected)} of "
            f"finetune.label_fraction {fraction:g} and seed {seed}; evaluate with the parameters of the fine-tuning."
        )


def evaluate_models(
    models: Mapping[str, Predict], *, params: EvaluateParams, seed: int, ingest: Path, shards: Path, out: Path,
    split: Split = "test", label_fraction: float = 1.0,
) -> dict[str, Any]:  # fmt: skip
    """Score any predictors, and the threshold baseline beside them, on the test split.

    Or on the `unused` images: those of the training split whose masks a fine-tuning on `label_fraction` of the labels
    with this seed doesn't see. The baseline is then fitted on the masks that it does see.

    Writes cases.csv (one row for each model and image), summary.json, metrics.json (flat), dsc_histogram.csv (images
    with a lesion in each twentieth of DSC) and overlays/{best,median,worst}.png, chosen by the first model's DSC.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: an image is missing or unreadable, no test or training case has a mask, or none is unused.
    """
    train = ShardedSplit.open(shards, "train")
    fitted = np.flatnonzero(train.index["labelled"].to_numpy(dtype=bool))
    if split == "unused":
        test = train.index.iloc[unused_labels(train.index, label_fraction, seed)].sort_values("case_id")
        fitted = labelled_subset(train.index, label_fraction, seed)
    else:
        test = ShardedSplit.open(shards, "test").index
        test = test[test["labelled"]].sort_values("case_id")
        if test.empty:
            raise UserError(f"{shards / 'index.parquet'}: no test case has a mask; add masks, or raise test_fraction.")
    threshold = best_threshold(_batches(train, fitted))
    models = {**models, "threshold": threshold.mask}
    cases, digest = score_cases(models, test=test, ingest=ingest, split=split)
    summary = _summarise(cases, params=params, seed=seed, threshold=threshold, digest=digest, split=split)

    with atomic_dir(out) as folder:
        written = EvaluationFolder(folder)
        cases.to_csv(written.cases, index=False, lineterminator="\n")
        write_json(written.summary, summary.as_dict())
        write_json(written.metrics, _flatten(summary))
        _dsc_histogram(cases).to_csv(written.histogram, index=False, lineterminator="\n")
        _write_overlays(written.overlays, models, cases=cases, test=test, ingest=ingest, split=split)
    logger.info(_table(summary))
    logger.info(f"wrote {out}: cases.csv, summary.json, metrics.json, dsc_histogram.csv, overlays/*.png")
    return summary.as_dict()


def score_cases(
    models: Mapping[str, Predict], *, test: pd.DataFrame, ingest: Path, split: Split = "test"
) -> tuple[pd.DataFrame, str]:
    """Score models image by image.

    Args:
        models: name -> function from a raw image to a mask of its size.
        test: rows of the shards' index.
        ingest: folder that the rows' paths start from.
        split: what the rows are.

    Returns:
        The table of cases.csv, ordered by model and row, and the hash of the scored split: SHA-256 over the sorted case
        ids and the *decoded* pixels of image and mask, so that another PNG encoder doesn't make another test split.
        No other split has the hash of a test split, though it held the same images.

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
    named = sorted(digests) if split == "test" else [split, sorted(digests)]
    digest = hashlib.sha256(json.dumps(named).encode()).hexdigest()
    return pd.DataFrame([row for name in models for row in rows[name]]), digest


def _read_case(image_path: Path, mask_path: Path) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    image, truth = read_image(image_path), read_mask(mask_path)
    if image.shape[:2] != truth.shape:
        raise UserError(f"{mask_path}: size {truth.shape}, its image's is {image.shape[:2]}; run ingest again.")
    return image, truth


def _pixel_digest(pixels: NDArray[Any]) -> str:
    head = f"{pixels.dtype.str} {pixels.shape} "
    return hashlib.sha256(head.encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _batches(
    split: ShardedSplit, rows: NDArray[np.integer[Any]]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    if not len(rows):
        raise UserError(
            f"{split.shards}: no training case has a mask, so there is no threshold to compare with; add masks."
        )
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
    cases: pd.DataFrame, *, params: EvaluateParams, seed: int, threshold: Threshold, digest: str, split: Split
) -> Summary:
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
    scores: dict[str, Scores] = {name: {} for name in columns}
    for (name, figure), interval in intervals.items():
        mean, low, high = (_null(value) for value in (interval.mean, interval.low, interval.high))
        scores[name][figure] = Score(mean, low, high, interval.cases, undefined=len(wide) - interval.cases)
    return Summary(
        test=ScoredImages(
            split=split,
            cases=len(wide),
            lesion_cases=int(wide[first]["dsc_lesion"].notna().sum()),
            groups=int(wide.index.get_level_values("group").nunique()),
            hash=digest,
        ),
        rule=RULE,
        confidence=params.confidence,
        models={name: scores[name] for name in models},
        paired={name: scores[name] for name in columns if name not in models},
        threshold=threshold,
    )


def _null(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _flatten(summary: Summary) -> dict[str, float]:
    """Means by `model_figure`, with the DSC's interval: what `dvc metrics` shows; undefined figures are left out."""
    flat: dict[str, float | None] = {f"{summary.test.split}_cases": summary.test.cases}
    for model, scores in summary.models.items():
        flat |= {f"{model}_{figure}": scores[figure].mean for figure in FIGURES}
        flat |= {f"{model}_dsc_low": scores["dsc"].low, f"{model}_dsc_high": scores["dsc"].high}
        flat[f"{model}_hd95_undefined"] = scores["hd95"].undefined
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
    folder: Path, models: Mapping[str, Predict], *, cases: pd.DataFrame, test: pd.DataFrame, ingest: Path, split: Split
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
        title = f"{kind.capitalize()} {split} images with a lesion, by DSC of the {first}"
        draw_overlays(folder / f"{kind}.png", examples, models=list(models), title=title)


def _table(summary: Summary) -> str:
    test, models = summary.test, {name: summary.models[name] for name in in_order(summary.models)}
    rows = [
        [label.text, *(_text(scores[figure], digits=label.digits) for scores in models.values())]
        for figure, label in FIGURES.items()
    ]
    rows.append(["  HD95 undefined (images)", *(str(scores["hd95"].undefined) for scores in models.values())])
    lines = [
        f"{SPLITS[test.split]}: {test.cases}, {test.lesion_cases} with a lesion, {test.groups} groups; "
        f"mean [{summary.confidence:.0%} interval, bootstrap over groups]",
        *_columns([["", *models], *rows]),
    ]
    for name, scores in summary.paired.items():
        lines.append(f"{name}, paired: DSC {_text(scores['dsc'], sign='+')}")
    if (baseline := summary.threshold) is not None:
        lines.append(f"threshold: {baseline} (best on the training split: DSC {baseline.train_dsc:.3f})")
    lines.append(f"rule: {summary.rule}")
    return "\n".join(lines)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align rows of equal length: the first column to the left, the others to the right, two spaces apart at least."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    first, *others = widths
    return [
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in rows
    ]


def _text(score: Score, *, digits: int = 3, sign: str = "") -> str:
    if score.mean is None:
        return "undefined"
    if score.low is None:
        return f"{score.mean:{sign}.{digits}f} [too few groups]"
    return f"{score.mean:{sign}.{digits}f} [{score.low:{sign}.{digits}f}, {score.high:{sign}.{digits}f}]"
