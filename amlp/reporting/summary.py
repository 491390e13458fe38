"""What was trained and registered, and where to look, in a few lines of text."""

from __future__ import annotations

import math
from pathlib import Path

from amlp.errors import ListedError
from amlp.evaluation.summary import Summary
from amlp.layout import RunFolder
from amlp.metrics.figures import in_order
from amlp.registry.registration import Registration


def summary(root: Path) -> str:
    """Describe the finished pipeline run in `root`.

    Raises:
        ListedError: names the files that a run would have written and that are not there.
    """
    run = RunFolder(root)
    evaluation, registration, report = run.evaluation.summary, run.registration, run.report
    missing = [str(path) for path in (evaluation, registration, report) if not path.is_file()]
    if missing:
        raise ListedError("The pipeline has not finished here; missing:", missing, "Run `dvc repro` first.")
    registered = Registration.read(registration)
    return "\n".join(
        [
            *_scores(Summary.read(evaluation)),
            "",
            *_versions(registered),
            "",
            "Where to look",
            f"  everything on one page   {report}",
            f"  runs and models          mlflow ui --backend-store-uri {registered.tracking_uri}",
            "  metrics and curves       dvc metrics show; dvc plots show",
            "  what would run again     dvc status",
        ]
    )


def _scores(summary: Summary) -> list[str]:
    test = summary.test
    interval_title = f"{summary.confidence:.0%} interval"
    lines = [
        f"Test split: {test.cases} images, {test.lesion_cases} with a lesion, in {test.groups} groups "
        "that no training image belongs to",
        f"  {'model':<12}{'DSC':>7}   {interval_title:<16}{'DSC, lesion images only':>24}",
    ]
    for name in in_order(summary.models):
        dsc, lesion = summary.models[name]["dsc"], summary.models[name]["dsc_lesion"]
        interval = f"{_figure(dsc.low)} to {_figure(dsc.high)}"
        lines.append(f"  {name:<12}{_figure(dsc.mean):>7}   {interval:<16}{_figure(lesion.mean):>24}")
    own = summary.models["segmenter"]["dsc"].mean
    better = [name for name in in_order(summary.models) if (summary.models[name]["dsc"].mean or 0.0) > (own or 0.0)]
    if better:
        lines.append(f"  The segmenter did worse than {' and '.join(better)}; the report says by how much.")
    return lines


def _versions(registered: Registration) -> list[str]:
    lines = [f"Registered in {registered.tracking_uri}, experiment {registered.experiment}"]
    for model in (registered.encoder, registered.segmenter):
        aliases = ", ".join(model.aliases)
        lines.append(f"  {model.name} version {model.version}" + (f" ({aliases})" if aliases else ""))
    return lines


def _figure(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
