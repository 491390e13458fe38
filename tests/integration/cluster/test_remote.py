"""What a component does around a RayJob: inputs to S3, outputs back, against a real S3 server and a scripted API.

No operator runs here, so the test itself does what the RayJob's entry point says, with a folder for an encoder.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from amlp import storage
from amlp.cluster.rayjob import JobFailed, JobRequest
from amlp.cluster.remote import run_as_rayjob
from amlp.cluster.stage import read_params
from amlp.cluster.training import ClusterParams, run_training
from amlp.errors import UserError
from amlp.params import Params
from tests.support.kube_api import KubeApi, kube_api
from tests.support.tiny import settings, write_shards

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


def test_a_mistake_that_the_job_wrote_down_is_the_tasks_own(bucket: str, folder: Path) -> None:
    """Also where KubeRay has started the next try already; what an earlier task of the name wrote does not count."""
    with kube_api() as api:
        api.before_get = lambda: storage.write(
            options(api)["--error"], b'{"kind": "user", "message": "finetune.batch: 7 is too many"}'
        )
        api.statuses = [{"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "failed": 1}]
        with pytest.raises(UserError, match="7 is too many"):
            run(api, bucket, folder, two_workers())
        assert api.deleted
        api.before_get = None
        api.statuses = [{"jobDeploymentStatus": "Complete", "jobStatus": "FAILED"}]
        with pytest.raises(JobFailed, match="Complete, FAILED"):
            run(api, bucket, folder, two_workers())


def test_a_failed_job_leaves_no_output(bucket: str, folder: Path) -> None:
    with kube_api() as api:
        api.statuses = [{"jobDeploymentStatus": "Complete", "jobStatus": "FAILED"}]
        with pytest.raises(JobFailed, match="Complete, FAILED"):
            run(api, bucket, folder, two_workers())
        assert api.deleted
    assert not (folder / "out").exists()


def test_a_rayjob_without_workers_is_refused(bucket: str, folder: Path) -> None:
    with kube_api() as api:
        with pytest.raises(UserError, match=r"finetune\.num_workers: 0"):
            run(api, bucket, folder, settings())
        assert not api.requests


SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
CLUSTER: dict[str, Any] = {
    "launcher": "rayjob", "image": "amlp-train:1", "template": str(TEMPLATE), "owner": "ada", "queue": "night",
    "gpus": 1, "node_selector": {"pool": "gpu"}, "tolerations": [{"key": "spot", "operator": "Exists"}],
    "deadline_hours": 2.0, "start_minutes": 5.0,
}  # fmt: skip


@pytest.fixture
def task(bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch, api: KubeApi) -> ClusterParams:
    """What a pipeline's task finds around it: a way to Kubernetes, its run, its pod."""
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "here", "users": [{"name": "me", "user": {}}],
        "clusters": [{"name": "here", "cluster": {"server": api.host}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }  # fmt: skip
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(folder / "kubeconfig"))
    for name, value in (("PIPELINE_RUN", "run-7"), ("POD_NAME", "pod-1"), ("POD_UID", "uid-1"), ("GIT_COMMIT", "abc")):
        monkeypatch.setenv(f"AMLP_{name}", value)
    return ClusterParams(**CLUSTER, work=f"{bucket}/work")


@pytest.fixture
def api() -> Iterator[KubeApi]:
    with kube_api() as api:
        yield api


def train(task: ClusterParams, folder: Path) -> None:
    run_training(
        stage="finetune", params=two_workers(), shards=folder / "shards", encoder=folder / "encoder",
        out=folder / "out", cluster=task,
    )  # fmt: skip


def test_a_pipelines_task_trains_on_a_ray_cluster_of_its_own(api: KubeApi, task: ClusterParams, folder: Path) -> None:
    def operate() -> None:
        with storage.output_dir(options(api)["--out"]) as out:
            (out / "segmenter.pt").write_bytes(b"trained")

    api.before_get, api.statuses = operate, [SUCCEEDED]
    train(task, folder)
    assert (folder / "out" / "segmenter.pt").read_bytes() == b"trained" and api.deleted

    [job] = api.created
    assert job["metadata"]["name"].startswith("amlp-finetune-run-7-")
    labels = job["metadata"]["labels"]
    assert (labels["amlp/owner"], labels["kueue.x-k8s.io/queue-name"]) == ("ada", "night")
    assert job["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Pod", "name": "pod-1", "uid": "uid-1"}]
    assert (job["spec"]["activeDeadlineSeconds"], job["spec"]["preRunningDeadlineSeconds"]) == (7200, 300)
    [workers] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    assert workers["replicas"] == 2 and pod["nodeSelector"]["pool"] == "gpu"
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"key": "spot", "operator": "Exists"} in pod["tolerations"]
    # The cluster is checked for both before anything is trained.
    given = options(api)
    assert (given["--gpus"], given["--commit"]) == ("2", "abc")


def test_a_task_without_a_run_names_no_rayjob(
    api: KubeApi, task: ClusterParams, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMLP_PIPELINE_RUN")
    with pytest.raises(UserError, match="AMLP_PIPELINE_RUN is not set"):
        train(task, folder)
    assert not api.requests


def test_storage_that_fails_is_reported_before_a_pod_trains(task: ClusterParams, folder: Path) -> None:
    in_pod = task.model_copy(update={"launcher": "pod", "gpus": 0, "work": "s3://no-such-bucket/work"})
    with pytest.raises(storage.StorageError, match="no such bucket"):
        train(in_pod, folder)


def test_a_ray_worker_has_one_gpu() -> None:
    with pytest.raises(ValueError, match="a Ray worker trains on one GPU"):
        ClusterParams(**CLUSTER | {"gpus": 2}, work="s3://b/work")
