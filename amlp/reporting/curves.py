"""The page's charts: how the trainings went, and the scores of single test images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from amlp.evaluation.summary import Summary
from amlp.files import read_json
from amlp.layout import EncoderFolder, RunFolder
from amlp.metrics.figures import MODELS, in_order
from amlp.reporting.charts import Band, DotChart, LineChart
from amlp.reporting.wording import number


def charts_of(run: RunFolder, summary: Summary) -> dict[str, Any]:
    from markupsafe import Markup

    pretraining = pd.read_csv(run.encoder.history)
    trainings = {
        title: pd.read_csv(folder.history)
        for folder, title in ((run.segmenter, "pre-trained"), (run.scratch, "from scratch"))
        if folder.history.is_file()
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
        "probe": _probe_chart(run.encoder),
        "validation": lines(epochs, training_lines("val_dsc"), "validation DSC", marks=kept),
        "finetuning": lines(epochs, training_lines("loss"), "training loss"),
        "cases": Markup(_cases_chart(run, summary)),
    }


def _probe_chart(encoder: EncoderFolder) -> Any:
    """The linear probe of the encoder over the epochs; None without masks to probe by."""
    from markupsafe import Markup

    file = encoder.diagnostics
    table = pd.read_csv(file) if file.is_file() else pd.DataFrame()
    if "probe_auc" not in table or table["probe_auc"].isna().all():
        return None
    lines = {"in training": table["probe_auc"].tolist()}
    described = f"in training: {_ends(lines['in training'])}"
    metrics = read_json(encoder.metrics) if encoder.metrics.is_file() else {}
    untrained = metrics.get("probe_auc_untrained")
    if untrained is not None:
        lines["untrained"] = [untrained] * len(table)
        described += f"; untrained: {untrained:.3g}"
    label = "AUC of lesion patches"
    return Markup(LineChart(table["epoch"].tolist(), lines, label, f"Line chart. {label}; {described}").svg())


def _cases_chart(run: RunFolder, summary: Summary) -> str:
    cases = pd.read_csv(run.evaluation.cases)
    cases = cases[cases["lesion_fraction"] > 0]
    rows = {}
    for name in in_order(summary.models):
        score = summary.models[name]["dsc_lesion"]
        if score.mean is not None:
            band = Band(mean=score.mean, low=score.low, high=score.high)
            rows[MODELS.get(name, name)] = (cases.loc[cases["model"] == name, "dsc"].tolist(), band)
    described = "; ".join(f"{name}: mean {number(band.mean)}" for name, (_, band) in rows.items())
    return DotChart(rows, "DSC of a test image with a lesion", f"Dot chart of the test images' DSC. {described}").svg()


def diagnostics(encoder: EncoderFolder) -> dict[str, Any] | None:
    """Judge the method's premises by the last fifth of the epochs; None without masks to judge by."""
    if not encoder.diagnostics.is_file():
        return None
    table = pd.read_csv(encoder.diagnostics)
    # Without masks pre-training can't write the column.
    if not len(table) or "error_lesion" not in table:
        return None
    drawn = pd.read_csv(encoder.history)
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


def _ends(values: list[float]) -> str:
    known = [value for value in np.asarray(values, dtype=float) if math.isfinite(value)]
    return f"{known[0]:.3g} at first, {known[-1]:.3g} at last" if known else "no values"
