"""What a component does around a RayJob: inputs to S3, outputs back, against a real S3 server and a scripted API.

No operator runs here, so the test itself does what the RayJob's entry point says, with a folder for an encoder.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from amlp.cluster import storage
from amlp.cluster.rayjob import JobFailed, JobRequest
from amlp.cluster.remote import run_as_rayjob
from amlp.cluster.stage import read_params
from amlp.errors import UserError
from amlp.params import Params
from tests.kube_api import KubeApi, kube_api
from tests.tiny import settings, write_shards

pytest.importorskip("kubernetes", reason="the launcher's client comes with the `pipelines` extra")

TEMPLATE = Path(__file__).parents[2] / "unit/cluster/rayjob.yaml"


def two_workers() -> Params:
    return settings(finetune=settings().finetune.model_dump() | {"num_workers": 2})


def options(api: KubeApi) -> dict[str, str]:
    words = shlex.split(api.created[-1]["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "amlp.cluster.stage", "finetune"]
    return dict(zip(words[4::2], words[5::2], strict=True))


def run(api: KubeApi, bucket: str, folder: Path, params: Params) -> None:
    run_as_rayjob(
        stage="finetune", params=params, shards=folder / "shards", encoder=folder / "encoder", out=folder / "out",
        work=f"{bucket}/work", template=TEMPLATE, request=JobRequest(run_id="r", task="finetune", image="amlp"),
        host=api.host,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards")
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "encoder.pt").write_bytes(b"weights")
    return tmp_path


def test_inputs_go_out_and_outputs_come_back(bucket: str, folder: Path) -> None:
    def operate() -> None:
        given = options(api)
        assert read_params(given["--params"]) == two_workers()
        storage.fetch(given["--shards"], folder / "seen" / "shards")
        storage.fetch(given["--encoder"], folder / "seen" / "encoder")
        with storage.output_dir(given["--out"]) as out:
            (out / "segmenter.pt").write_bytes(b"trained")

    with kube_api() as api:
        api.before_get = operate
        api.statuses = [{"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}]
        run(api, bucket, folder, two_workers())
        assert api.deleted
        assert api.created[0]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 2
    assert (folder / "out" / "segmenter.pt").read_bytes() == b"trained"
    for name in ("shards/index.parquet", "encoder/encoder.pt"):
        assert (folder / "seen" / name).read_bytes() == (folder / name).read_bytes()


def test_a_failed_job_leaves_no_output(bucket: str, folder: Path) -> None:
    with kube_api() as api:
        api.statuses = [{"jobDeploymentStatus": "Complete", "jobStatus": "FAILED"}]
        with pytest.raises(JobFailed):
            run(api, bucket, folder, two_workers())
        assert api.deleted
    assert not (folder / "out").exists()


def test_a_rayjob_without_workers_is_refused(bucket: str, folder: Path) -> None:
    with kube_api() as api:
        with pytest.raises(UserError, match=r"finetune\.num_workers: 0"):
            run(api, bucket, folder, settings())
        assert not api.requests
