"""A study's folder: what is finished, by which code and data, and what no longer fits.

    units/NAME/params.yaml, log.txt      how the unit ran
    units/NAME/record.json               what made it, written before it starts
    units/NAME/result/                   what the stage wrote, whole or absent
    state/                               checkpoints from which killed trainings resume

A unit is finished when `result/` is there. It is stale when code, data or the model that it started from have changed
since its record was written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

import amlp
from amlp.files import read_json, sha256, write_json, write_text
from amlp.layout import EncoderFolder, SegmenterFolder
from amlp.registry.lineage import code_version
from amlp.study.plan import Kind, Unit
from amlp.training.state import code_digest, data_digest, run_digest

State = Literal["absent", "done", "stale"]


@dataclass(frozen=True)
class Made:
    """Digests of the code that runs, and of the data that it reads, for each kind of unit."""

    code: Mapping[Kind, str]
    data: Mapping[Kind, str]

    @classmethod
    def now(cls, shards: Path) -> Made:
        """Take the digests of this code and these shards."""
        training, train = code_digest(), data_digest(shards)
        package = Path(amlp.__file__).parent
        # Scores are of images and masks at their native size.
        scoring = [
            package / "data" / "images.py",
            *sorted((package / "evaluation").glob("*.py")),
            *sorted((package / "metrics").glob("*.py")),
        ]
        scored = sorted(shards.glob("test-*.npy"))
        return cls(
            code={
                "pretrain": training,
                "finetune": training,
                "score": run_digest(training, *(sha256(file) for file in scoring)),
            },
            data={
                "pretrain": train,
                "finetune": train,
                "score": run_digest(train, *(sha256(file) for file in scored)),
            },
        )


@dataclass(frozen=True)
class Store:
    """Where the units lie."""

    root: Path

    def folder(self, unit: Unit) -> Path:
        return self.root / "units" / unit.name

    def result(self, unit: Unit) -> Path:
        return self.folder(unit) / "result"

    def log(self, unit: Unit) -> Path:
        return self.folder(unit) / "log.txt"

    def record(self, unit: Unit) -> dict[str, Any] | None:
        """Return what made a finished unit, or None for one that is not finished."""
        file = self.folder(unit) / "record.json"
        return read_json(file) if file.is_file() and self.result(unit).is_dir() else None

    def state(self, unit: Unit, made: Made) -> State:
        if self.record(unit) is None:
            return "absent"
        return "stale" if self.changes(unit, made) else "done"

    def changes(self, unit: Unit, made: Made) -> list[str]:
        """Name what a finished unit was made by and that is no longer so: code, data, input."""
        record = self.record(unit)
        if record is None:
            return []
        now = {"code": made.code[unit.kind], "data": made.data[unit.kind]}
        model = self._input(unit)
        # A model that was deleted to save space says nothing against what was made of it.
        if model is not None:
            now["input"] = model
        return [name for name, value in now.items() if record[name] != value]

    def prepare(self, unit: Unit, made: Made, *, threads: int) -> None:
        """Forget an earlier result; write the unit's parameters and the record of what makes it now."""
        shutil.rmtree(self.result(unit), ignore_errors=True)
        values = unit.params.model_dump(by_alias=True)
        write_text(self.folder(unit) / "params.yaml", yaml.safe_dump(values, sort_keys=False))
        commit, dirty = code_version(Path())
        write_json(
            self.folder(unit) / "record.json",
            {
                "kind": unit.kind,
                "variant": unit.variant,
                "fraction": unit.fraction,
                "seed": unit.seed,
                "params": unit.digest,
                "code": made.code[unit.kind],
                "data": made.data[unit.kind],
                "input": self._input(unit),
                "commit": commit + ("-dirty" if dirty else ""),
                "torch": torch.__version__,
                "cores": cores(),
                "threads": threads,
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            },
        )

    def _input(self, unit: Unit) -> str | None:
        if unit.needs is None:
            return None
        folder = self.result(unit.needs)
        model = (EncoderFolder if unit.needs.kind == "pretrain" else SegmenterFolder)(folder).weights
        return sha256(model) if model.is_file() else None


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
