"""What was trained and registered, and where to look, in a few lines of text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from amlp.errors import ListedError
from amlp.files import read_json
from amlp.layout import RunFolder


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
    return "\n".join(
        [
            *_scores(read_json(evaluation)),
            "",
            *_versions(read_json(registration)),
            "",
            "Where to look",
            f"  everything on one page   {report}",
            f"  runs and models          mlflow ui --backend-store-uri {read_json(registration)['tracking_uri']}",
            "  metrics and curves       dvc metrics show; dvc plots show",
            "  what would run again     dvc status",
        ]
    )


def _scores(evaluation: dict[str, Any]) -> list[str]:
    test = evaluation["test"]
    interval_title = f"{evaluation['confidence']:.0%} interval"
    lines = [
        f"Test split: {test['cases']} images, {test['lesion_cases']} with a lesion, in {test['groups']} groups "
        "that no training image belongs to",
        f"  {'model':<12}{'DSC':>7}   {interval_title:<16}{'DSC, lesion images only':>24}",
    ]
    # A JSON file keeps no order: the model first, then what it is compared with.
    for name, scores in sorted(evaluation["models"].items(), key=lambda item: item[0] != "segmenter"):
        dsc, lesion = scores["dsc"], scores["dsc_lesion"]
        interval = f"{_figure(dsc['low'])} to {_figure(dsc['high'])}"
        lines.append(f"  {name:<12}{_figure(dsc['mean']):>7}   {interval:<16}{_figure(lesion['mean']):>24}")
    return lines


def _versions(registration: dict[str, Any]) -> list[str]:
    lines = [f"Registered in {registration['tracking_uri']}, experiment {registration['experiment']}"]
    for part in ("encoder", "segmenter"):
        model = registration[part]
        aliases = ", ".join(model.get("aliases", []))
        lines.append(f"  {model['name']} version {model['version']}" + (f" ({aliases})" if aliases else ""))
    return lines


def _figure(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
