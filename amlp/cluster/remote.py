"""A training stage with local inputs and outputs, run as a RayJob: what a pipeline's component calls."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from amlp.cluster.rayjob import JobRequest, submit
from amlp.cluster.stage import STAGES, StageError
from amlp.environment import COMMIT_VARIABLE
from amlp.errors import UserError
from amlp.params import Params
from amlp.storage import absolute, check_storage, fetch, publish_once, remove, write


def run_as_rayjob(
    *,
    stage: str,
    params: Params,
    shards: Path,
    encoder: Path | None,
    out: Path,
    work: str,
    template: Path,
    request: JobRequest,
    host: str = "",
) -> None:
    """Publish what the stage reads, run it on a Ray cluster, and fetch what it wrote.

    Args:
        stage: one of `STAGES`.
        params: with 1 or more `num_workers` in the stage's section: that many the cluster gets.
        work: `s3://bucket/prefix`: `inputs/` (each folder once, by content), `state/`, and one folder for each pipeline
            run.
        template: of the RayJob.
        request: the entry point and the number of workers are filled in here.
        host: of the API server; empty looks for it.

    Raises:
        UserError: the storage fails or the parameters can't be run so.
        RayJobError: the RayJob did not succeed.
    """
    assert stage in STAGES
    section = "pretrain" if stage == "pretrain" else "finetune"
    workers = getattr(params, section).num_workers
    if workers < 1:
        raise UserError(f"{section}.num_workers: 0 trains in the launching process; a RayJob needs 1 or more.")
    work = absolute(work)
    check_storage(work)
    ours = f"{work}/{request.name}"
    write(f"{ours}/params.json", params.model_dump_json(by_alias=True).encode())
    words = ["python", "-m", "amlp.cluster.stage", stage, "--params", f"{ours}/params.json"]
    words += ["--shards", publish_once(shards, f"{work}/inputs")]
    if encoder:
        words += ["--encoder", publish_once(encoder, f"{work}/inputs")]
    words += ["--state", f"{work}/state", "--out", f"{ours}/out", "--error", f"{ours}/error/why.json"]
    if request.gpus:
        words += ["--gpus", str(request.gpus * workers)]
    if commit := os.environ.get(COMMIT_VARIABLE):
        words += ["--commit", commit]
    # Of an earlier try of this task, which somebody repaired.
    remove(f"{ours}/error")

    def refused() -> str:
        try:
            error = StageError.read(f"{ours}/error/why.json")
        except UserError:
            # Storage that is away for a moment is no reason to end a training; the next look asks again.
            return ""
        return error.message if error and error.kind == "user" else ""

    request = replace(request, entrypoint=words, workers=workers)
    submit(template=template, request=request, host=host, refused=refused)
    fetch(f"{ours}/out", out)
