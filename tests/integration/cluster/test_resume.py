"""A RayJob's entry point on a real Ray head: its driver is killed, a retry on a new cluster goes on from S3."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from amlp import storage
from amlp.cluster.rayjob import JobRequest, build, load_template
from amlp.models.checkpoint import load_encoder
from amlp.training.pretrain import pretrain
from tests.support.servers import RayHead, ray_head
from tests.support.tiny import settings, write_shards

EPOCHS, WORKERS = 10, 2
TEMPLATE = Path(__file__).parents[2] / "unit/cluster/rayjob.yaml"


def entrypoint(bucket: str, name: str) -> str:
    """The command as the RayJob holds it."""
    words = ["python", "-m", "amlp.cluster.stage", "pretrain", "--params", f"{bucket}/params.json",
             "--shards", f"{bucket}/shards", "--state", f"{bucket}/{name}/state",
             "--out", f"{bucket}/{name}/encoder"]  # fmt: skip
    request = JobRequest(run_id=name, task="pretrain", entrypoint=words, image="amlp", workers=WORKERS)
    return str(build(load_template(TEMPLATE), request)["spec"]["entrypoint"])


def wait_until(done: Callable[[], object], what: str, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what}: not in {seconds} s"
        time.sleep(0.2)  # between looks at other processes


def finish(head: RayHead, command: str) -> tuple[str, str]:
    """Run a job to its end and return its status and log."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(head.dashboard)
    job = client.submit_job(entrypoint=command)
    wait_until(lambda: client.get_job_status(job).is_terminal(), command)
    return client.get_job_status(job).value, client.get_job_logs(job)


def checkpoint_epoch(state: str) -> int:
    """Epoch of the checkpoint in S3; 0 while there is none."""
    bucket, prefix = storage.split_uri(state)
    listed = storage.s3_client().list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    for entry in listed:
        if entry["Key"].endswith("/last.pt"):
            data = storage.read(f"s3://{bucket}/{entry['Key']}")
            return int(torch.load(io.BytesIO(data), weights_only=True)["epoch"]) if data else 0
    return 0


def kill_driver(out: str) -> None:
    """Kill the stage's own process, not the shell around it."""
    drivers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if out in (line := process.info["cmdline"] or []) and "amlp.cluster.stage" in line
    ]
    assert len(drivers) == 1
    os.kill(drivers[0].pid, signal.SIGKILL)


@pytest.mark.timeout(900)
def test_a_killed_rayjob_resumes_from_s3_and_ends_like_an_uninterrupted_one(
    bucket: str, project: Path, tmp_path: Path
) -> None:
    from ray.job_submission import JobSubmissionClient

    shards = write_shards(tmp_path / "shards")
    section = settings().pretrain.model_dump() | {"epochs": EPOCHS, "num_workers": WORKERS}
    params = settings(pretrain=section)
    storage.publish(shards, f"{bucket}/shards")
    storage.write(f"{bucket}/params.json", params.model_dump_json(by_alias=True).encode())

    def environment(node: str) -> dict[str, str]:
        # As a pod's: nothing of the first cluster's disk is left to the second.
        return {
            "AMLP_CACHE": str(tmp_path / node),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_ADDRESS": "",
        }

    command = entrypoint(bucket, "killed")
    with ray_head(environment("first"), cwd=tmp_path, cpus=WORKERS) as head:
        client = JobSubmissionClient(head.dashboard)
        job = client.submit_job(entrypoint=command)
        wait_until(
            lambda: checkpoint_epoch(f"{bucket}/killed/state") >= 3 or client.get_job_status(job).is_terminal(),
            "a checkpoint of epoch 3",
        )
        assert not client.get_job_status(job).is_terminal(), client.get_job_logs(job)
        kill_driver(f"{bucket}/killed/encoder")
        wait_until(lambda: client.get_job_status(job).is_terminal(), "the end of a killed job")
        assert client.get_job_status(job).value == "FAILED"
    assert storage.read(f"{bucket}/killed/encoder/encoder.pt") is None, "killed too late to show anything"

    with ray_head(environment("second"), cwd=tmp_path, cpus=WORKERS) as head:
        status, log = finish(head, command)
        assert status == "SUCCEEDED", log
        assert "Resuming after epoch" in log
        status, log = finish(head, entrypoint(bucket, "whole"))
        assert status == "SUCCEEDED", log
        assert "Resuming" not in log

    for name in ("killed", "whole"):
        storage.fetch(f"{bucket}/{name}/encoder", tmp_path / name)
        assert checkpoint_epoch(f"{bucket}/{name}/state") == 0, "the state is forgotten in the end"
    assert (tmp_path / "killed/encoder.pt").read_bytes() == (tmp_path / "whole/encoder.pt").read_bytes()
    curves = [pd.read_csv(tmp_path / name / "steps.csv") for name in ("killed", "whole")]
    pd.testing.assert_frame_equal(*curves)

    # And like this one process, but for the order of sums.
    alone = settings(pretrain=section | {"num_workers": 0})
    pretrain(params=alone, shards=shards, out=tmp_path / "alone", state=tmp_path / "state")
    ours, theirs = (load_encoder(tmp_path / name / "encoder.pt")[0].state_dict() for name in ("whole", "alone"))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-2, atol=1e-3)
