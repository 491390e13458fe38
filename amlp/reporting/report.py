"""Stage `report`: everything that a run found, on one HTML page that needs no other file, no network and no script."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from amlp.evaluation.summary import Summary
from amlp.files import read_json, write_text
from amlp.layout import RunFolder
from amlp.metrics.patches import describe
from amlp.params import Params
from amlp.registry.lineage import folder_in_repository
from amlp.registry.registration import Registration
from amlp.registry.runlog import flatten
from amlp.registry.tracking import connect, resolve_uri
from amlp.reporting.curves import charts_of, diagnostics
from amlp.reporting.pictures import embedded
from amlp.reporting.provenance import dirty_note, lineage_rows, load_code, reproduce_code
from amlp.reporting.results import headline, results, tiles
from amlp.reporting.wording import duration, number

logger = logging.getLogger(__name__)

_PRETRAINING_PICTURES = {
    "masks": (
        "Masks over the epochs",
        "How much of the same training images the encoder saw as the masking ratio changed, and which patches were "
        "hidden from it.",
        "Training images at several epochs with the masked patches covered",
    ),
    "scores": (
        "Lesion scores",
        "Which patches were taken for lesion (MPS), found without masks, on training images.",
        "Training images beside their maps of lesion scores",
    ),
    "reconstructions": (
        "Reconstructions",
        "What the encoder saw of training images, and what was reconstructed from it.",
        "Training images, their visible patches and their reconstructions",
    ),
}
_OVERLAYS = {
    "best": ("Best", "Test images with a lesion on which the segmenter's DSC is highest."),
    "median": ("Median", "Test images with a lesion round the segmenter's median DSC."),
    "worst": ("Worst", "Test images with a lesion on which the segmenter's DSC is lowest."),
}


def report(*, params: Params, root: Path, out: Path) -> None:
    """Write the page, and attach it to the MLflow run when the models are registered.

    Args:
        params: of the run.
        root: folder with the stages' outputs.
        out: the HTML file to write.

    Raises:
        ListedError: outputs of earlier stages are missing.
    """
    run = RunFolder(root)
    run.require(
        run.ingest.summary, run.shards.index, run.encoder.history, run.segmenter.history, run.segmenter.metrics,
        run.evaluation.summary, run.evaluation.cases, stage="report",
    )  # fmt: skip
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        # Names of labels and cases come from file names: nothing of theirs may become markup.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    page = environment.get_template("report.html.j2").render(_context(params, run))
    write_text(out, page)
    logger.info(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")
    if run.registration.is_file():
        _attach(out, Registration.read(run.registration), root)


def _attach(page: Path, registration: Registration, root: Path) -> None:
    """Add the page to the run's artifacts; without MLflow the page is still good, so that is no error."""
    uri = resolve_uri(registration.tracking_uri, root)
    database = Path(uri.removeprefix("sqlite:///"))
    # MLflow would make a new, empty database.
    if uri.startswith("sqlite:") and not database.is_file():
        logger.info(f"Not attached to the MLflow run: {database} is gone.")
        return
    try:
        with connect(uri) as client:
            client.log_artifact(registration.parent_run_id, str(page))
    except Exception as error:  # Whatever the store raises: an unreachable server, a deleted run.
        logger.info(f"Not attached to the MLflow run: {error}")


def _context(params: Params, run: RunFolder) -> dict[str, Any]:
    """Collect what the template shows."""
    summary = Summary.read(run.evaluation.summary)
    registration = Registration.read(run.registration) if run.registration.is_file() else None
    index = pd.read_parquet(run.shards.index)
    confidence = f"{summary.confidence * 100:g}%"
    return {
        "source": _source(params),
        "headline": headline(summary, confidence),
        "tiles": tiles(summary, registration),
        "training": _training(params, run, index),
        "splits": _splits(index),
        "groups": _groups(read_json(run.ingest.summary)),
        "images": _images(params, run, index),
        "confidence": confidence,
        **results(summary, confidence),
        "overlays": embedded(run.evaluation.overlays, {k: (*v, v[1]) for k, v in _OVERLAYS.items()}),
        "pretraining": _pretraining(params, run),
        "pictures": embedded(run.encoder.pictures, _pretraining_pictures(params)),
        "scores": _scores(run.shards.metrics),
        "diagnostics": diagnostics(run.encoder),
        "finetuning": _finetuning(run),
        "charts": charts_of(run, summary),
        "lineage": lineage_rows(registration) if registration else None,
        "load_code": load_code(registration) if registration else None,
        "reproduce_code": reproduce_code(registration, folder_in_repository(run.root)),
        "dirty": dirty_note(registration),
        "settings": sorted(_settings(params).items()),
    }


def _source(params: Params) -> str:
    """Name the data set, by its folder's name alone: where the folder lies is nobody's business."""
    return "phantom (generated images)" if params.ingest.source == "phantom" else Path(params.ingest.path).name


def _training(params: Params, run: RunFolder, index: pd.DataFrame) -> str:
    train, val, test = (int((index["split"] == split).sum()) for split in ("train", "val", "test"))
    labelled = read_json(run.segmenter.metrics)["labelled_images"]
    return (
        f"The encoder was pre-trained on the {train} images of the training split, without their masks, for "
        f"{params.pretrain.epochs} epochs. The segmenter was then fine-tuned on {labelled} of them with their masks "
        f"for {params.finetune.epochs} epochs; the {val} validation images chose the epoch. Nothing was trained or "
        f"chosen on the {test} test images."
    )


def _splits(index: pd.DataFrame) -> dict[str, Any]:
    labels = sorted(index["label"].unique())
    rows = []
    for split in ("train", "val", "test"):
        part = index[index["split"] == split]
        rows.append(
            {
                "split": {"train": "training", "val": "validation", "test": "test"}[split],
                "counts": [int((part["label"] == label).sum()) for label in labels],
                "images": len(part),
                "labelled": int(part["labelled"].sum()),
                "groups": part["group"].nunique(),
            }
        )
    return {"labels": labels, "rows": rows}


def _groups(ingested: Mapping[str, Any]) -> str:
    """Say what a group is in this data set."""
    if not ingested["without_patient"]:
        return "A group is all images of one patient and their near-duplicates; no group is in two splits."
    if not ingested["patients"]:
        return (
            "A group is an image and its near-duplicates; no group is in two splits. No patient is known: images of "
            "one patient may be in several groups and splits."
        )
    return (
        "A group is all images of one patient and their near-duplicates; no group is in two splits. The patient of "
        f"{ingested['without_patient']} images is not known: they are grouped with their near-duplicates alone."
    )


def _settings(params: Params) -> dict[str, Any]:
    settings = flatten(params.model_dump(by_alias=True))
    if Path(path := settings["ingest.path"]).is_absolute():
        settings["ingest.path"] = Path(path).name
    return settings


def _images(params: Params, run: RunFolder, index: pd.DataFrame) -> str:
    def span(column: str) -> str:
        low, high = index[column].min(), index[column].max()
        return f"{low}" if low == high else f"{low} to {high}"

    sentences = [
        f"Images are {span('height')} pixels high and {span('width')} wide; the model sees them at "
        f"{params.preprocess.height} × {params.preprocess.width}."
    ]
    areas = index.loc[index["lesion_fraction"] > 0, "lesion_fraction"]
    if len(areas):
        sentences.append(f"Where there is a lesion, it covers {areas.median():.1%} of the image (median).")
    bad = run.validate.bad_cases
    if bad.is_file():
        left_out = pd.read_csv(bad)["case_id"].nunique()
        sentences.append(f"Validation left {left_out} case(s) out." if left_out else "Validation left no case out.")
    return " ".join(sentences)


def _pretraining(params: Params, run: RunFolder) -> str:
    settings = params.pretrain
    last = pd.read_csv(run.encoder.history).iloc[-1]
    parts = {
        "MPS": settings.mps.enabled,
        "AMR": settings.amr.enabled,
        "RRL": settings.rrl.enabled,
        "CCL": settings.ccl.enabled,
    }
    on, off = ([name for name, enabled in parts.items() if enabled is wanted] for wanted in (True, False))
    text = f"Parts of the method in use: {', '.join(on) or 'none, which is plain MAE'}."
    if on and off:
        text += f" Off: {', '.join(off)}."
    text += f" {int(last['step']):,} steps over {_rounded(last['visible_tokens'])} visible patches"
    return f"{text}, {duration(last['seconds'])}."


def _rounded(count: float) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{int(count):,}"


def _pretraining_pictures(params: Params) -> dict[str, tuple[str, str, str]]:
    if params.pretrain.target != "hog":
        return _PRETRAINING_PICTURES
    title, _, alt = _PRETRAINING_PICTURES["reconstructions"]
    caption = (
        "What the encoder saw of training images, and how strong the gradients are that it was to predict and that it "
        "predicted, in each quarter of a patch."
    )
    return _PRETRAINING_PICTURES | {"reconstructions": (title, caption, alt)}


def _finetuning(run: RunFolder) -> str:
    sentences = []
    for folder, words in ((run.segmenter, "From the pre-trained encoder"), (run.scratch, "From scratch")):
        if folder.metrics.is_file():
            metrics = read_json(folder.metrics)
            sentences.append(f"{words}: best validation DSC {metrics['val_dsc']:.3f} in epoch {metrics['best_epoch']}.")
    loading = run.segmenter.loading
    found = read_json(loading) if loading.is_file() else None
    if found:
        used, missing = len(found["matched"]) + len(found["adapted"]), len(found["missing"])
        sentences.append(f"The checkpoint supplied {used} of the encoder's {used + missing} tensors.")
    return " ".join(sentences)


def _scores(file: Path) -> dict[str, Any] | None:
    """Judge the lesion scores by the masks of the training split; None without any."""
    found = read_json(file).get("scores") if file.is_file() else None
    if not found:
        return None
    text, warning = describe(found)
    return {"text": f"{text} {warning}" if warning else text, "warn": warning is not None}
