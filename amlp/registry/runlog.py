"""A run in MLflow, written in few calls: parameters, figures, curves and files."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow refuses larger batches (mlflow.utils.validation).
_MAX_METRICS, _MAX_PARAMS = 1000, 100
# Columns of a training's system.csv -> names in the group that MLflow's pages show as system metrics.
SYSTEM_METRICS = {
    "cpu_percent": "system/process_cpu_percentage",  # 100 is one core
    "memory_mb": "system/process_memory_megabytes",
    "gpu_memory_mb": "system/process_gpu_memory_megabytes",
}


@dataclass(frozen=True)
class RunLog:
    """Writes one run."""

    client: MlflowClient
    run_id: str

    def tags(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in values.items()])

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Log nested values under dotted names."""
        from mlflow.entities import Param

        entries = [Param(valid_name(key), str(value)) for key, value in flatten(values).items()]
        for start in range(0, len(entries), _MAX_PARAMS):
            self.client.log_batch(self.run_id, params=entries[start : start + _MAX_PARAMS])

    def figures(self, values: Mapping[str, Any]) -> None:
        """Log the numbers among nested values as metrics under dotted names; other values are passed over."""
        now = time.time()
        self._metrics((key, value, now, 0) for key, value in flatten(values).items() if not isinstance(value, str))

    def curves(self, file: Path, *, step: str | None = None, names: Mapping[str, str] | None = None) -> None:
        """Log each numeric column of a CSV file as a metric, one value a row; undefined values are left out.

        Args:
            file: a column `seconds`, the time since the start, gives the time stamps, as the file was written at
                the end.
            step: column of the step numbers; the rows are numbered from 1 without.
            names: column -> metric, where they differ.
        """
        # Here, for the task that records a pipeline's outcome has no tables.
        import pandas as pd

        table = pd.read_csv(file).select_dtypes("number")
        steps = table[step].astype(int) if step else pd.Series(range(1, len(table) + 1))
        seconds = table["seconds"] if "seconds" in table else pd.Series(0.0, index=table.index)
        times = file.stat().st_mtime - (seconds.max() - seconds)
        self._metrics(
            ((names or {}).get(column, column), value, moment, int(number))
            for column in table.columns.drop(step or [])
            for value, moment, number in zip(table[column], times, steps, strict=True)
        )

    def _metrics(self, values: Iterable[tuple[str, Any, float, int]]) -> None:
        from mlflow.entities import Metric

        entries = [
            Metric(valid_name(key), float(value), int(moment * 1000), number)
            for key, value, moment, number in values
            if value is not None and math.isfinite(value)
        ]
        for start in range(0, len(entries), _MAX_METRICS):
            self.client.log_batch(self.run_id, metrics=entries[start : start + _MAX_METRICS])

    def files(self, paths: Iterable[Path]) -> None:
        """Upload files and folders, a folder under its own name; what doesn't exist is passed over."""
        for path in paths:
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), path.name)
            elif path.is_file():
                self.client.log_artifact(self.run_id, str(path))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Bring nested mappings to one level of dotted keys; lists and None are left out of it."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None and not isinstance(value, (list, tuple)):
            flat[f"{prefix}{key}"] = value
    return flat


def valid_name(key: str) -> str:
    """Replace what MLflow refuses in a name: label names are folder names, which may hold anything."""
    parts = re.sub(r"[^\w. \-/]", "_", key)[:250].split("/")
    # A name must not be another one when it is read as a path.
    return "/".join(part for part in parts if part.strip("."))
