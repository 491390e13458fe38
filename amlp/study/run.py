"""Run a study: what is not finished yet, several units at once, each as the stage's own command.

A unit that is killed resumes from its stage's checkpoint when the study is run again. A unit that fails stops those
that need it, and no others.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from tqdm import tqdm

from amlp.errors import ListedError, UserError
from amlp.files import read_json
from amlp.layout import ShardsFolder
from amlp.progress import progress
from amlp.registry.register import log_outputs
from amlp.registry.runlog import RunLog
from amlp.registry.tracking import child_run, connect, finished_run, mlflow_uri, reopened_run, resolve_uri
from amlp.study.plan import Kind, Plan, Study, Unit
from amlp.study.store import Made, Store, cores
from amlp.training.state import run_digest

Stale = Literal["stop", "rerun", "keep"]
_STAGE: dict[Kind, str] = {"pretrain": "pretrain", "finetune": "finetune", "score": "evaluate"}
_POLL, _TAIL = 0.2, 15


def run_study(
    study: Study, plan: Plan, *, shards: Path, ingest: Path, store: Store, jobs: int = 1, stale: Stale = "stop"
) -> dict[str, str]:
    """Run the units of a plan that are not finished, and record each finished one in MLflow.

    Args:
        study: the study; its `register` values say where MLflow is, a SQLite file being seen from the working folder.
        plan: the units.
        shards: the preprocess stage's folder.
        ingest: the ingest stage's folder.
        store: where the units lie.
        jobs: units at a time; the CPU's cores are shared evenly, GPUs are handed out in turn.
        stale: what becomes of units that other code or data made: `stop` lists them and runs nothing, `rerun` makes
            them again, `keep` takes them as they are.

    Returns:
        What failed: the unit's title -> why.

    Raises:
        ListedError: units are stale.
        UserError: the data don't fit the recipe, or MLflow can't be reached.
    """
    _check_data(study, shards, ingest)
    made = Made.now(shards)
    if stale == "stop":
        changed = [(unit, store.changes(unit, made)) for unit in plan.units]
        if problems := [f"{unit.title}: another {' and '.join(what)}" for unit, what in changed if what]:
            raise ListedError(
                f"{store.root}: finished units no longer fit",
                problems,
                "--stale rerun makes them again; --stale keep takes them as they are, which the page will say.",
            )
    with _recorder(study, store) as record:
        scheduler = _Scheduler(plan, store, made, stale=stale, shards=shards, ingest=ingest, jobs=jobs, record=record)
        return scheduler.run()


def _check_data(study: Study, shards: Path, ingest: Path) -> None:
    stats = ShardsFolder(shards).stats
    if not stats.is_file() or not ingest.is_dir():
        missing = ingest if stats.is_file() else stats
        raise UserError(f"{missing}: not found; run `dvc repro preprocess` first, or give --shards and --ingest.")
    file = ShardsFolder(shards).made_by
    if not file.is_file():
        raise UserError(f"{file}: not found, so it is not known how the shards were made; preprocess again.")
    found = read_json(file)
    wanted = {name: study.base[name] for name in found}
    differ = [
        f"{name}.{key}: {found[name].get(key)!r}, the study's recipe has {value!r}"
        for name in ("preprocess", "scores")
        for key, value in wanted[name].items()
        if found[name].get(key) != value
    ]
    differ += [f"seed: {found['seed']}, the study's recipe has {wanted['seed']}"] * (found["seed"] != wanted["seed"])
    if differ:
        raise ListedError(f"{shards}: made by other parameters", differ, "Preprocess with the study's recipe.")


@contextmanager
def _recorder(study: Study, store: Store) -> Iterator[Callable[[Unit], None]]:
    """Open the study's run in MLflow; yields what records a finished unit below it, once."""
    settings = study.params(study.file.reference, min(study.file.fractions), 0).register_
    experiment, name = f"{settings.experiment}-study", study.file.name
    tags = {"study": name}
    with (
        connect(resolve_uri(mlflow_uri(settings.tracking_uri), Path())) as client,
        reopened_run(client, experiment=experiment, name=name, tags=tags | {"kind": "study"}) as parent,
    ):
        RunLog(client, parent).files([study.path])

        def record(unit: Unit) -> None:
            made = store.record(unit)
            assert made is not None, f"{unit.name} is not finished"
            identity = {"unit": unit.name, "record": run_digest(made)}
            if finished_run(client, parent=parent, tags=identity):
                return
            cell = {"kind": unit.kind, "variant": unit.variant, "fraction": unit.fraction, "seed": unit.seed}
            made_by = {key: str(value) for key, value in {**cell, "params": unit.digest}.items()}
            made_by |= {key: made[key] for key in ("code", "data")}
            commit = {"mlflow.source.git.commit": made["commit"].removesuffix("-dirty")}
            with child_run(client, parent=parent, name=unit.title, tags=identity | made_by | tags | commit) as log:
                values = unit.params.model_dump(by_alias=True)
                log_outputs(log, stage=_STAGE[unit.kind], folder=store.result(unit), values=values)

        yield record


@dataclass(frozen=True)
class _Job:
    unit: Unit
    slot: int
    process: subprocess.Popen[bytes]
    started: float


class _Scheduler:
    """Starts units as soon as what they need is there and a slot is free."""

    def __init__(
        self, plan: Plan, store: Store, made: Made, *, stale: Stale, shards: Path, ingest: Path, jobs: int,
        record: Callable[[Unit], None],
    ) -> None:  # fmt: skip
        self.store, self.made, self.stale, self.record = store, made, stale, record
        self.shards, self.ingest, self.jobs = shards, ingest, jobs
        self.scored = plan.scored
        self.waiting, self.running = list(plan.units), dict[int, _Job]()
        self.finished, self.failed = set[str](), dict[str, str]()
        self.reasons: dict[str, str] = {}
        index = pd.read_parquet(ShardsFolder(shards).index)
        self.images = index[index["labelled"] | (index["split"] == "train")].groupby("split").size().to_dict()

    def run(self) -> dict[str, str]:
        # Images seen, not units, give the time left: a pre-training takes as long as a hundred scorings.
        with progress(sum(map(self._work, self.waiting)), "study", "images") as bar:
            try:
                while self.waiting or self.running:
                    self._start_what_can_start(bar)
                    for slot, job in list(self.running.items()):
                        if job.process.poll() is not None:
                            del self.running[slot]
                            self._end(job, bar)
                    # Between looks at other processes; what is waited for is their end.
                    time.sleep(_POLL if self.running else 0)
            finally:
                for job in self.running.values():
                    job.process.terminate()
                for job in self.running.values():
                    job.process.wait()
        return self.reasons

    def _start_what_can_start(self, bar: tqdm) -> None:
        for unit in list(self.waiting):
            if unit.needs and unit.needs.name in self.failed:
                self._fail(unit, f"needs {unit.needs.title}, which failed", bar)
            elif unit.needs and unit.needs.name not in self.finished:
                continue
            elif (state := self.store.state(unit, self.made)) == "done" or (state == "stale" and self.stale == "keep"):
                self._finish(unit, "was finished", bar)
            elif state == "stale" and self.stale == "stop":
                self._fail(unit, "another model to start from; --stale rerun or --stale keep", bar)
            elif len(self.running) < self.jobs:
                self._start(unit)

    def _start(self, unit: Unit) -> None:
        self.waiting.remove(unit)
        slot = min(set(range(self.jobs)) - self.running.keys())
        threads = max(1, cores() // self.jobs)
        self.store.prepare(unit, self.made, threads=threads)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        if count := torch.cuda.device_count():
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
            environment["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
        with self.store.log(unit).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "amlp", *self._command(unit)], env=environment, stdout=log, stderr=log
            )
        self.running[slot] = _Job(unit, slot, process, time.monotonic())

    def _command(self, unit: Unit) -> list[str]:
        folder, result = self.store.folder(unit), self.store.result(unit)
        arguments = [_STAGE[unit.kind], "--params", folder / "params.yaml", "--shards", self.shards, "--out", result]
        if unit.kind != "score":
            arguments += ["--state", self.store.root / "state"]
        source = self.store.result(unit.needs) if unit.needs else None
        if unit.kind == "finetune":
            arguments += ["--encoder", source] if source else ["--from-scratch"]
        if unit.kind == "score":
            assert source is not None
            arguments += ["--ingest", self.ingest, "--segmenter", source, "--no-scratch"]
            arguments += ["--split", self.scored]
        return [str(argument) for argument in arguments]

    def _end(self, job: _Job, bar: tqdm) -> None:
        seconds = time.monotonic() - job.started
        if job.process.returncode == 0:
            self._finish(job.unit, f"took {seconds:.0f} s", bar)
            return
        log = self.store.log(job.unit)
        tail = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()[-_TAIL:]
        reason = f"exit code {job.process.returncode}, {log}:\n" + "\n".join(f"    {line}" for line in tail)
        self._fail(job.unit, reason, bar)

    def _finish(self, unit: Unit, text: str, bar: tqdm) -> None:
        if unit in self.waiting:
            self.waiting.remove(unit)
        self.finished.add(unit.name)
        bar.write(f"{unit.title}: {text}", file=sys.stdout)
        bar.update(self._work(unit))
        try:
            self.record(unit)
        except Exception as error:
            # Days of training must not end because a server was away for a minute: the next run records it.
            self.reasons[f"{unit.title}, in MLflow"] = f"not recorded, run again to do so: {error}"

    def _fail(self, unit: Unit, reason: str, bar: tqdm) -> None:
        if unit in self.waiting:
            self.waiting.remove(unit)
        self.failed[unit.name] = self.reasons[unit.title] = reason
        bar.write(f"{unit.title}: FAILED", file=sys.stdout)
        bar.update(self._work(unit))

    def _work(self, unit: Unit) -> int:
        """Images that a unit looks at, roughly."""
        train, val, test = (int(self.images.get(split, 0)) for split in ("train", "val", "test"))
        if unit.kind == "pretrain":
            return unit.params.pretrain.epochs * train
        settings = unit.params.finetune
        if unit.kind == "score":
            return test if self.scored == "test" else round((1 - settings.label_fraction) * train)
        validations = -(-settings.epochs // settings.validate_epochs)
        return round(settings.epochs * settings.label_fraction * train) + validations * val
