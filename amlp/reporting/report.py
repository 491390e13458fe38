"""Stage `report`: everything that a run found, on one HTML page that needs no other file, no network and no script."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from amlp.errors import ListedError
from amlp.files import read_json, write_text
from amlp.metrics.patches import judge
from amlp.params import Params
from amlp.registry.tracking import connect, flatten, resolve_uri
from amlp.reporting.charts import Band, DotChart, LineChart

# Bytes a picture may take before it becomes a JPEG: with these the page stays below 5 MB.
_PICTURE_BYTES = 450_000
_PICTURE_WIDTHS = (1800, 1200, 800)

_TITLES = {"segmenter": "segmenter", "scratch": "from scratch", "threshold": "threshold"}
# Figure -> its row's label, decimals, and whether larger is better.
_FIGURES = {
    "dsc": ("DSC, all images", 3, True),
    "dsc_lesion": ("DSC, images with a lesion", 3, True),
    "ppv": ("PPV", 3, True),
    "sensitivity": ("Sensitivity", 3, True),
    "hd95": ("HD95, pixels", 1, False),
    "false_positive_rate": ("False-positive rate, images without lesion", 3, False),
}
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
_NEEDED = (
    "data/shards/index.parquet",
    "models/encoder/history.csv",
    "models/segmenter/history.csv",
    "models/segmenter/metrics.json",
    "evaluation/summary.json",
    "evaluation/cases.csv",
)


def report(*, params: Params, root: Path, out: Path) -> None:
    """Write the page, and attach it to the MLflow run when the models are registered.

    Args:
        params: of the run.
        root: folder with the stages' outputs.
        out: the HTML file to write.

    Raises:
        ListedError: outputs of earlier stages are missing.
    """
    if missing := [name for name in _NEEDED if not (root / name).is_file()]:
        raise ListedError(f"report: {root} lacks outputs of earlier stages", missing, "Run them first: `dvc repro`.")
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        # Names of labels and cases come from file names: nothing of theirs may become markup.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    page = environment.get_template("report.html.j2").render(_context(params, root))
    write_text(out, page)
    print(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")
    if (root / "registration.json").is_file():
        _attach(out, read_json(root / "registration.json"), root)


def _attach(page: Path, registration: Mapping[str, Any], root: Path) -> None:
    """Add the page to the run's artifacts; without MLflow the page is still good, so that is no error."""
    uri = resolve_uri(registration["tracking_uri"], root)
    database = Path(uri.removeprefix("sqlite:///"))
    # MLflow would make a new, empty database.
    if uri.startswith("sqlite:") and not database.is_file():
        print(f"Not attached to the MLflow run: {database} is gone.")
        return
    try:
        with connect(uri) as client:
            client.log_artifact(registration["parent_run_id"], str(page))
    except Exception as error:  # Whatever the store raises: an unreachable server, a deleted run.
        print(f"Not attached to the MLflow run: {error}")


def _context(params: Params, root: Path) -> dict[str, Any]:
    """Collect what the template shows."""
    summary = _ordered(read_json(root / "evaluation/summary.json"))
    registration = read_json(root / "registration.json") if (root / "registration.json").is_file() else None
    index = pd.read_parquet(root / "data/shards/index.parquet")
    confidence = f"{summary['confidence'] * 100:g}%"
    return {
        "source": _source(params),
        "headline": _headline(summary, confidence),
        "tiles": _tiles(summary, registration),
        "training": _training(params, root, index),
        "splits": _splits(index),
        "images": _images(params, root, index),
        "confidence": confidence,
        **_results(summary, confidence),
        "overlays": _pictures(root / "evaluation/overlays", {k: (*v, v[1]) for k, v in _OVERLAYS.items()}),
        "pretraining": _pretraining(params, root),
        "pictures": _pictures(root / "models/encoder/pictures", _pretraining_pictures(params)),
        "scores": _scores(root / "data/shards/metrics.json"),
        "diagnostics": _diagnostics(root / "models/encoder/diagnostics.csv"),
        "finetuning": _finetuning(root),
        "charts": _charts(root, summary),
        "lineage": _lineage(registration) if registration else None,
        "load_code": _load_code(registration) if registration else None,
        "reproduce_code": _reproduce_code(registration),
        "dirty": _dirty(registration),
        "settings": sorted(flatten(params.model_dump(by_alias=True)).items()),
    }


def _ordered(summary: dict[str, Any]) -> dict[str, Any]:
    """Bring the models into the order in which they are shown; a JSON file keeps none."""
    names = [
        *(name for name in _TITLES if name in summary["models"]),
        *sorted(summary["models"].keys() - _TITLES.keys()),
    ]
    return {**summary, "models": {name: summary["models"][name] for name in names}}


def _source(params: Params) -> str:
    return {"phantom": "phantom (generated images)", "busi": "BUSI"}.get(params.ingest.source, params.ingest.source)


def _headline(summary: Mapping[str, Any], confidence: str) -> str:
    test, models = summary["test"], summary["models"]
    text = (
        f"On {test['cases']} test images from {test['groups']} groups that no training image belongs to, the "
        f"segmenter's mean DSC is {_with_interval(models['segmenter']['dsc'], confidence)}."
    )
    others = [
        f"{words} reaches {_number(models[name]['dsc']['mean'])}"
        for name, words in (
            ("scratch", "the same network without pre-training"),
            ("threshold", "the best single grey-value threshold"),
        )
        if name in models
    ]
    return f"{text} For comparison, {', and '.join(others)}." if others else text


def _tiles(summary: Mapping[str, Any], registration: Mapping[str, Any] | None) -> list[dict[str, str]]:
    tiles = [
        {
            "label": f"DSC, {_TITLES.get(name, name)}",
            "value": _number(entry["dsc"]["mean"]),
            "detail": f"{_number(entry['dsc_lesion']['mean'])} on images with a lesion",
        }
        for name, entry in summary["models"].items()
    ]
    if registration:
        segmenter = registration["segmenter"]
        tiles.append(
            {
                "label": segmenter["name"],
                "value": f"version {segmenter['version']}",
                "detail": ", ".join(segmenter["aliases"]),
            }
        )
    return tiles


def _training(params: Params, root: Path, index: pd.DataFrame) -> str:
    train, val, test = (int((index["split"] == split).sum()) for split in ("train", "val", "test"))
    labelled = read_json(root / "models/segmenter/metrics.json")["labelled_images"]
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


def _images(params: Params, root: Path, index: pd.DataFrame) -> str:
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
    bad = root / "data/validate/bad_cases.csv"
    if bad.is_file():
        left_out = pd.read_csv(bad)["case_id"].nunique()
        sentences.append(f"Validation left {left_out} case(s) out." if left_out else "Validation left no case out.")
    return " ".join(sentences)


def _results(summary: Mapping[str, Any], confidence: str) -> dict[str, Any]:
    models = summary["models"]
    rows = []
    for figure, (label, digits, larger) in _FIGURES.items():
        means = [entry[figure]["mean"] for entry in models.values()]
        known = [mean for mean in means if mean is not None]
        best = (max if larger else min)(known) if known else None
        cells = [{"entry": entry[figure], "best": entry[figure]["mean"] == best} for entry in models.values()]
        if known:
            rows.append({"label": label, "digits": digits, "cells": cells})
    undefined = [
        f"{entry['hd95']['undefined']} ({_TITLES.get(name, name)})"
        for name, entry in models.items()
        if entry["hd95"]["undefined"]
    ]
    return {
        "models": [{"title": _TITLES.get(name, name)} for name in models],
        "figures": rows,
        "rule": summary["rule"],
        "undefined": ", ".join(undefined),
        "comparisons": [
            _comparison(name, entry["dsc"], confidence)
            for name, entry in summary["paired"].items()
            if entry["dsc"]["mean"] is not None
        ],
    }


def _comparison(name: str, difference: Mapping[str, Any], confidence: str) -> dict[str, Any]:
    """Say what a paired difference of DSC means; its interval decides."""
    subject, other = {
        "segmenter-scratch": ("Pre-training", "the same network trained from scratch"),
        "segmenter-threshold": ("The segmenter", "the best single threshold"),
    }.get(name, (name, "the other"))
    low, high = difference["low"], difference["high"]
    detail = f"DSC {_signed(difference['mean'])} on the same images"
    if low is None:
        return {"text": f"{subject} against {other}: {detail}; too few groups for an interval.", "warn": True}
    interval = f"the {confidence} interval is {_signed(low)} to {_signed(high)}"
    if low > 0:
        return {"text": f"{subject} did better than {other}: {detail}; {interval}.", "warn": False}
    if high < 0:
        return {"text": f"{subject} did worse than {other}: {detail}; {interval}.", "warn": True}
    return {
        "text": f"{subject} made no clear difference against {other}: {detail}; {interval}, which includes 0.",
        "warn": True,
    }


def _pretraining(params: Params, root: Path) -> str:
    settings = params.pretrain
    last = pd.read_csv(root / "models/encoder/history.csv").iloc[-1]
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
    text += f" {int(last['step']):,} steps over {last['visible_tokens'] / 1e6:.1f} million visible patches"
    return f"{text}, {_duration(last['seconds'])}."


def _pretraining_pictures(params: Params) -> dict[str, tuple[str, str, str]]:
    if params.pretrain.target != "hog":
        return _PRETRAINING_PICTURES
    title, _, alt = _PRETRAINING_PICTURES["reconstructions"]
    caption = (
        "What the encoder saw of training images, and how strong the gradients are that it was to predict and that it "
        "predicted, in each quarter of a patch."
    )
    return _PRETRAINING_PICTURES | {"reconstructions": (title, caption, alt)}


def _finetuning(root: Path) -> str:
    sentences = []
    for name, words in (("segmenter", "From the pre-trained encoder"), ("scratch", "From scratch")):
        path = root / "models" / name / "metrics.json"
        if path.is_file():
            metrics = read_json(path)
            sentences.append(f"{words}: best validation DSC {metrics['val_dsc']:.3f} in epoch {metrics['best_epoch']}.")
    loading = root / "models/segmenter/loading.json"
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
    text, warning = judge(found)
    return {"text": f"{text} {warning}" if warning else text, "warn": warning is not None}


def _diagnostics(file: Path) -> dict[str, Any] | None:
    """Judge the method's premises by the last fifth of the epochs; None without masks to judge by."""
    if not file.is_file():
        return None
    table = pd.read_csv(file)
    # Without masks pre-training can't write the column.
    if not len(table) or "error_lesion" not in table:
        return None
    drawn = pd.read_csv(file.with_name("history.csv"))
    table = table.merge(drawn[["epoch", "masked_lesion_share", "masked_background_share"]], on="epoch")
    late = table.tail(max(1, len(table) // 5)).mean(numeric_only=True)
    lines = []
    masked = late["masked_lesion_share"] - late["masked_background_share"]
    if math.isfinite(masked):
        lines.append(
            {
                "text": f"In the last epochs {late['masked_lesion_share']:.0%} of the lesion patches were masked and "
                f"{late['masked_background_share']:.0%} of the background"
                + ("." if masked > 0 else ": lesions were not masked first."),
                "warn": masked <= 0,
            }
        )
    error = late["error_lesion"] / late["error_background"]
    if math.isfinite(error):
        harder = "Lesion patches are harder to reconstruct than background"
        text = (
            f"{harder}: {error:.2f} times its error in the last epochs."
            if error > 1
            else f"Lesion patches are not harder to reconstruct than background ({error:.2f} times its error in the "
            "last epochs): the premise of RRL and CCL fails on this data set."
        )
        lines.append({"text": text, "warn": error <= 1})
    return {"lines": lines, **_diagnostic_charts(table)}


def _diagnostic_charts(table: pd.DataFrame) -> dict[str, Any]:
    from markupsafe import Markup

    def chart(lesion: str, background: str, label: str, limits: tuple[float | None, float | None]) -> Markup:
        lines = {"true lesion": table[lesion].tolist(), "background": table[background].tolist()}
        described = "; ".join(f"{name}: {_ends(values)}" for name, values in lines.items())
        return Markup(
            LineChart(table["epoch"].tolist(), lines, label, f"Line chart. {label}; {described}", limits=limits).svg()
        )

    return {
        "masked": chart("masked_lesion_share", "masked_background_share", "share masked", (0, 1)),
        "error": chart("error_lesion", "error_background", "reconstruction error", (0, None)),
    }


def _charts(root: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    from markupsafe import Markup

    pretraining = pd.read_csv(root / "models/encoder/history.csv")
    trainings = {
        title: pd.read_csv(root / "models" / name / "history.csv")
        for name, title in (("segmenter", "pre-trained"), ("scratch", "from scratch"))
        if (root / "models" / name / "history.csv").is_file()
    }
    epochs = max(trainings.values(), key=len)["epoch"].tolist()
    kept = {title: float(table.loc[table["val_dsc"].idxmax(), "epoch"]) for title, table in trainings.items()}

    def lines(
        x: list[float], columns: dict[str, list[float]], label: str, *, marks: Mapping[str, float] | None = None
    ) -> Markup:
        described = "; ".join(f"{name}: {_ends(values)}" for name, values in columns.items())
        return Markup(LineChart(x, columns, label, f"Line chart. {label}; {described}", marks=marks or {}).svg())

    def training_lines(column: str) -> dict[str, list[float]]:
        return {title: table[column].reindex(range(len(epochs))).tolist() for title, table in trainings.items()}

    x = pretraining["epoch"].tolist()
    return {
        "pretraining": lines(
            x, {"loss": pretraining["loss"].tolist(), "squared error": pretraining["reconstruction"].tolist()}, "loss"
        ),
        "ratio": lines(x, {"masking ratio": pretraining["ratio"].tolist()}, "masking ratio"),
        "probe": _probe_chart(root / "models/encoder"),
        "validation": lines(epochs, training_lines("val_dsc"), "validation DSC", marks=kept),
        "finetuning": lines(epochs, training_lines("loss"), "training loss"),
        "cases": Markup(_cases_chart(root, summary)),
    }


def _probe_chart(encoder: Path) -> Any:
    """The linear probe of the encoder over the epochs; None without masks to probe by."""
    from markupsafe import Markup

    file = encoder / "diagnostics.csv"
    table = pd.read_csv(file) if file.is_file() else pd.DataFrame()
    if "probe_auc" not in table or table["probe_auc"].isna().all():
        return None
    lines = {"in training": table["probe_auc"].tolist()}
    described = f"in training: {_ends(lines['in training'])}"
    untrained = (read_json(encoder / "metrics.json") if (encoder / "metrics.json").is_file() else {}).get(
        "probe_auc_untrained"
    )
    if untrained is not None:
        lines["untrained"] = [untrained] * len(table)
        described += f"; untrained: {untrained:.3g}"
    label = "AUC of lesion patches"
    return Markup(LineChart(table["epoch"].tolist(), lines, label, f"Line chart. {label}; {described}").svg())


def _cases_chart(root: Path, summary: Mapping[str, Any]) -> str:
    cases = pd.read_csv(root / "evaluation/cases.csv")
    cases = cases[cases["lesion_fraction"] > 0]
    rows = {}
    for name, entry in summary["models"].items():
        band = Band(**{key: entry["dsc_lesion"][key] for key in ("mean", "low", "high")})
        if band.mean is not None:
            rows[_TITLES.get(name, name)] = (cases.loc[cases["model"] == name, "dsc"].tolist(), band)
    described = "; ".join(f"{name}: mean {_number(band.mean)}" for name, (_, band) in rows.items())
    return DotChart(rows, "DSC of a test image with a lesion", f"Dot chart of the test images' DSC. {described}").svg()


def _pictures(folder: Path, kinds: Mapping[str, tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Embed the pictures that exist, in the order of `kinds`: file stem -> title, caption, alternative text."""
    items = []
    for name, (title, caption, alt) in kinds.items():
        file = folder / f"{name}.png"
        if file.is_file():
            picture = _embed(file, alt)
            items.append({"title": title, "caption": caption, "picture": picture, "wide": picture["width"] > 800})
    return items


def _embed(file: Path, alt: str) -> dict[str, Any]:
    """Turn a picture into a data URI: as it is when small, else as a JPEG, shrunk until it fits."""
    content, kind = file.read_bytes(), "png"
    with Image.open(file) as image:
        size = image.size
        for width in _PICTURE_WIDTHS:
            if len(content) <= _PICTURE_BYTES:
                break
            small = image.convert("RGB")
            small.thumbnail((width, size[1]), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            small.save(buffer, format="JPEG", quality=85, optimize=True)
            content, kind = buffer.getvalue(), "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"uri": uri, "width": size[0], "height": size[1], "alt": alt}


def _lineage(registration: Mapping[str, Any]) -> list[tuple[str, str]]:
    lineage = registration["lineage"]
    rows = [
        (f"{registration[part]['name']}", f"version {registration[part]['version']} "
         f"({', '.join(registration[part]['aliases'])}), weights SHA-256 {registration[part]['model_sha256']}")
        for part in ("segmenter", "encoder")
    ]  # fmt: skip
    dirty = {True: " (with changes that are not committed)", False: "", None: ""}[lineage["git_dirty"]]
    return [
        *rows,
        ("Data, MD5 by DVC", lineage["data_md5"]),
        ("Test split", lineage["test_hash"]),
        ("Code, git commit", lineage["git_commit"] + dirty),
        ("Parameters", lineage["params_hash"]),
        ("amlp", lineage["amlp_version"]),
        ("MLflow", f"{registration['tracking_uri']}, experiment {registration['experiment']}, "
                   f"run {registration['parent_run_id']}"),
    ]  # fmt: skip


def _load_code(registration: Mapping[str, Any]) -> str:
    segmenter = registration["segmenter"]
    return "\n".join(
        [
            "from pathlib import Path",
            "",
            "import mlflow",
            "",
            f'mlflow.set_tracking_uri("{registration["tracking_uri"]}")',
            f'model = mlflow.pyfunc.load_model("models:/{segmenter["name"]}/{segmenter["version"]}")  '
            f"# or models:/{segmenter['name']}@champion",
            'mask = model.predict(Path("image.png").read_bytes())["mask"]  # (height, width) of 0 and 1',
        ]
    )


def _reproduce_code(registration: Mapping[str, Any] | None) -> str:
    lineage = registration["lineage"] if registration else {"git_commit": "unknown"}
    checkout = [] if lineage["git_commit"] == "unknown" else [f"git checkout {lineage['git_commit']}"]
    setup = [f"pip install {pin}"] if (pin := lineage.get("requirement")) else ["make setup", ". .venv/bin/activate"]
    return "\n".join([*checkout, *setup, "dvc repro"])


def _dirty(registration: Mapping[str, Any] | None) -> str:
    if not registration or registration["lineage"]["git_dirty"] is False:
        return ""
    if registration["lineage"]["git_dirty"] is None:
        return "It is not known which commit this run was made with, or whether files differed from it."
    return "Files differed from this commit when the run was made, so the commit alone does not reproduce it."


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _with_interval(entry: Mapping[str, Any], confidence: str) -> str:
    if entry["low"] is None:
        return _number(entry["mean"])
    return f"{_number(entry['mean'])} ({confidence} interval {_number(entry['low'])} to {_number(entry['high'])})"


def _ends(values: list[float]) -> str:
    known = [value for value in np.asarray(values, dtype=float) if math.isfinite(value)]
    return f"{known[0]:.3g} at first, {known[-1]:.3g} at last" if known else "no values"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
