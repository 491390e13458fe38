"""Acceptance on a real Kubeflow with KubeRay: `make test-cluster`, from the top to the bottom.

Runs are drawn images and small models; the later ones take from Kubeflow's cache what the first one made.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections import Counter
from typing import Any

import pytest

from pipelines.runs import TASKS
from tests.support.real_cluster import RUN_SECONDS, SOON_SECONDS, Cluster, Ended, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

TRAININGS = ("pretrain", "scratch", "finetune")
_STEPS = re.compile(r" [1-9][0-9]*/[0-9]+ \[.*steps")
# Long enough for somebody to end a training in the middle.
PARAMS: dict[str, Any] = {
    # Nothing of an earlier acceptance is in the cache, unless somebody names its seed to continue with it.
    "seed": int(os.environ.get("AMLP_ACCEPTANCE_SEED") or random.SystemRandom().randrange(10**6)),
    "ingest": {"source": "phantom", "phantom": {"patients": 24, "images_per_patient": 2, "height": 64, "width": 64}},
    "preprocess": {"height": 48, "width": 48, "test_fraction": 0.25, "val_fraction": 0.25},
    "encoder": {"dim": 24, "depth": 2},
    "pretrain": {
        "epochs": 120, "checkpoint_epochs": 10, "batch": 8, "precision": "fp32", "decoder": {"dim": 12, "depth": 1},
    },
    "finetune": {"epochs": 60, "precision": "fp32", "channels": 8, "pseudo_label_epochs": 1},
    "evaluate": {"bootstrap_samples": 100},
    "gate": {"min_groups": 2},
}  # fmt: skip
# A child of the task's first process: the one that does the work.
_CHILD = (
    "import os, signal\n"
    "def parent(pid): return int(open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[1])\n"
    "def words(pid): return open(f'/proc/{pid}/cmdline').read()\n"
    "pids = [int(p) for p in os.listdir('/proc') if p.isdigit()]\n"
    "tasks = [p for p in pids if 'components.runtime' in words(p) and not words(p).startswith('/bin')"
    " and 'launcher' not in words(p)]\n"
    "children = [p for p in tasks if parent(p) in tasks]\n"
)
KILL = _CHILD + "[os.kill(p, signal.SIGKILL) for p in children]; print(children)"
# Not handled by the work: it ends with an exit code.
INTERRUPT = _CHILD + "[os.kill(p, signal.SIGINT) for p in children]; print(children)"
# Takes what memory the container has, in processes of which each has less than the one that is to be ended, and slowly
# enough for somebody who watches.
SWELL = _CHILD + (
    "import time\n"
    "def alive(): return any(os.path.exists(f'/proc/{p}') for p in children)\n"
    "while alive():\n"
    "    if os.fork() == 0:\n"
    "        x = []\n"
    "        while alive():\n"
    "            x += [bytearray(50_000_000)] if len(x) < 4 else []\n"
    "            time.sleep(0.1)\n"
    "        os._exit(0)\n"
    "    time.sleep(0.4)\n"
)


@pytest.fixture(scope="module")
def first(cluster: Cluster) -> Ended:
    print(f"AMLP_ACCEPTANCE_SEED={PARAMS['seed']}")
    ended = cluster.wait(cluster.submit(PARAMS, "--name", "first"))
    cluster.note("first run", ended)
    return ended


def weights(cluster: Cluster, run: str) -> dict[str, str]:
    """SHA-256 of the models that a run registered."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    _, tags = cluster.parent(run)
    assert tags
    info, _ = cluster.parent(run)
    found = {}
    for name in ("amlp-encoder", "amlp-segmenter"):
        for version in client.search_model_versions(f"name = '{name}'"):
            if client.get_run(version.run_id).data.tags.get("mlflow.parentRunId", version.run_id) == info.run_id:
                found[name] = version.tags["model_sha256"]
    return found


def succeeded(ended: Ended) -> None:
    assert (ended.state, ended.status, ended.outcome, ended.error) == ("SUCCEEDED", "FINISHED", "SUCCEEDED", "")


def failed(ended: Ended, task: str, reason: str) -> None:
    assert (ended.state, ended.status, ended.outcome) == ("FAILED", "FAILED", "FAILED")
    assert task in ended.task.split(",") and reason in ended.error, ended.error


def test_a_first_run(first: Ended) -> None:
    succeeded(first)
    # Kubeflow saw every task to its end.
    assert {name: row["state"] for name, row in first.tasks.items()} == dict.fromkeys(TASKS, "SUCCEEDED")


def test_a_cached_run(cluster: Cluster, first: Ended) -> None:
    ended = cluster.wait(cluster.submit(PARAMS, "--name", "cached"))
    cluster.note("cached run", ended)
    succeeded(ended)
    assert ended.cached == set(TASKS) - {"gate", "record-outcome"}


def test_a_task_that_refuses_its_parameters(cluster: Cluster, first: Ended) -> None:
    """A mistake of the user is tried once, and stands in MLflow in the task's words."""
    ended = cluster.wait(cluster.submit({**PARAMS, "validate": {"min_side": 4096}}, "--name", "failing"))
    cluster.note("failing task", ended)
    failed(ended, "validate", "are bad")
    assert ended.tasks["validate"]["tries"] == 1 and len(cluster.pods(ended.id, "validate")) == 1


@pytest.mark.parametrize(
    ("how", "code"), [("killed", KILL), ("exit code", INTERRUPT), ("out of memory", SWELL), ("pod deleted", "")]
)
def test_trainings_that_are_ended_reach_the_same_weights(cluster: Cluster, first: Ended, how: str, code: str) -> None:
    fresh = [word for task in TRAININGS for word in ("--fresh", task)]
    options = ("--name", how, "--work", f"{cluster.work}/{PARAMS['seed']}-{how.replace(' ', '-')}", *fresh)
    run = cluster.submit(PARAMS, *options)

    def disturb(task: str) -> None:
        pod = cluster.running(run, task)
        # Some steps into the training, so that there is something to resume.
        until(lambda: _STEPS.search(cluster.kubectl("logs", pod, "-c", "main", "--tail=50", check=False)), task, 300)
        if code:
            cluster.execute(pod, code)
        else:
            cluster.kubectl("delete", "pod", pod, "--wait=false")

    threads = [threading.Thread(target=disturb, args=(task,)) for task in TRAININGS]
    for thread in threads:
        thread.start()
    ended = cluster.wait(run)
    for thread in threads:
        thread.join(60)
    cluster.note(f"trainings: {how}", ended)
    if not code and ended.state == "FAILED":
        # Argo repeats a pod that it finds gone, and none whose exit code it saw: what --resubmit is for.
        assert "was asked to end" in ended.error, ended.error
        run = cluster.submit(PARAMS, *options)
        ended = cluster.wait(run)
        cluster.note("trainings: pod deleted, submitted again", ended)
    succeeded(ended)
    assert weights(cluster, run) == weights(cluster, first.id)
    if code:
        logs = [
            cluster.kubectl("logs", cluster.pods(run, task)[-1]["metadata"]["name"], "-c", "main") for task in TRAININGS
        ]
        assert all("This may pass: trying again" in log for log in logs)


def test_a_run_that_is_terminated(cluster: Cluster, first: Ended) -> None:
    run = cluster.submit(PARAMS, "--name", "terminated", "--fresh", "pretrain")
    cluster.running(run, "pretrain")
    cluster.api("POST", f"runs/{run}:terminate")
    ended = cluster.wait(run, sync=True)
    cluster.note("terminated", ended)
    assert (ended.status, ended.outcome) == ("KILLED", "CANCELED") and "pretrain" in ended.task


def test_kubeflows_controller_is_away_for_a_while(cluster: Cluster, first: Ended) -> None:
    """What ran goes to its end, and the rest follows when the controller is back."""
    deployment = "deployment/workflow-controller"
    if not cluster.kubectl("get", deployment, "-o", "name", check=False):
        pytest.skip(f"no {deployment} in the namespace")
    run = cluster.submit(PARAMS, "--name", "controller away", "--fresh", "finetune")
    cluster.running(run, "finetune")
    cluster.kubectl("scale", deployment, "--replicas=0")
    try:
        until(lambda: not cluster.working(run), "the end of the tasks that ran", RUN_SECONDS)
    finally:
        cluster.kubectl("scale", deployment, "--replicas=1")
    ended = cluster.wait(run)
    cluster.note("controller away", ended)
    succeeded(ended)


def test_objects_that_kubeflows_store_lost(cluster: Cluster, first: Ended) -> None:
    """The reader names the task; `--fresh` heals; the failed run succeeds when it is tried again."""
    store = Store(cluster)
    keys = store.keys(first.id, "preprocess", "shards")
    assert keys
    kept = {key: store.take(key) for key in keys}
    params = {**PARAMS, "pretrain": {**PARAMS["pretrain"], "epochs": 2}}
    ended = cluster.wait(cluster.submit(params, "--name", "lost"))
    cluster.note("lost objects", ended)
    failed(ended, "pretrain", "--fresh preprocess")
    healed = cluster.wait(cluster.submit(params, "--name", "healed", "--fresh", "preprocess"))
    cluster.note("lost objects, --fresh preprocess", healed)
    succeeded(healed)
    for key, data in kept.items():
        store.put(key, data)
    cluster.api("POST", f"runs/{ended.id}:retry")
    until(lambda: cluster.api("GET", f"runs/{ended.id}").get("state") == "RUNNING", "the retry", SOON_SECONDS)
    again = cluster.wait(ended.id)
    cluster.note("retried through the API", again)
    succeeded(again)


def test_two_runs_at_once(cluster: Cluster, first: Ended) -> None:
    runs = [
        cluster.submit(
            {**PARAMS, "finetune": {**PARAMS["finetune"], "epochs": epochs}}, "--name", f"one of two, {epochs}"
        )
        for epochs in (4, 5)
    ]
    for run in runs:
        ended = cluster.wait(run)
        cluster.note("two at once", ended)
        succeeded(ended)


def test_a_schedule_starts_a_run(cluster: Cluster, first: Ended) -> None:
    words = ("--params", str(cluster.folder / "params.yaml"), "--resources", "small", "--experiment", "amlp-acceptance")
    cluster.submit(PARAMS, "--name", "before the schedule")
    said = cluster.command("schedule", "0 * * * * *", *words, "--name", "each minute")
    schedule = said.split("Schedule ")[1].split(":")[0]
    assert said.count(":00") >= 3
    try:
        found = until(
            lambda: [
                run["run_id"]
                for run in cluster.api("GET", "runs?page_size=50&sort_by=created_at%20desc").get("runs", [])
                if run.get("recurring_run_id") == schedule
            ],
            "a run of the schedule",
            180,
        )
        # No more of them; and not deleted yet, for Kubernetes would delete the run that goes on with it.
        cluster.api("POST", f"recurringruns/{schedule}:disable")
        ended = cluster.wait(found[-1])
    finally:
        cluster.api("DELETE", f"recurringruns/{schedule}")
    cluster.note("schedule", ended)
    succeeded(ended)


RAY = ("--launcher", "rayjob", "--workers", "1")
# Runs with a Ray cluster: with more of them, a small node is busy starting them, and none trains.
AT_A_TIME = 3


def test_a_rayjob_trains_and_goes(cluster: Cluster, first: Ended) -> None:
    run = cluster.submit(PARAMS, "--name", "rayjob", *RAY, "--work", f"{cluster.work}/ray")
    ended = cluster.wait(run)
    cluster.note("RayJobs", ended)
    succeeded(ended)
    assert cluster.rayjobs(run) == []


def test_a_mistake_is_tried_once_on_a_ray_cluster_too(cluster: Cluster, first: Ended) -> None:
    params = {**PARAMS, "encoder": {**PARAMS["encoder"], "patch": 16}, "preprocess": {**PARAMS["preprocess"]}}
    params["pretrain"] = {**PARAMS["pretrain"], "batch": 9}
    run = cluster.submit(params, "--name", "rayjob, mistake", "--launcher", "rayjob", "--workers", "2", "--work",
                         f"{cluster.work}/ray-mistake")  # fmt: skip
    ended = cluster.wait(run)
    cluster.note("RayJob, wrong parameter", ended)
    failed(ended, "pretrain", "can't be shared evenly")
    assert cluster.rayjobs(run) == []


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_no_rayjob_outlives_its_task(cluster: Cluster, first: Ended, how: str) -> None:
    """At random moments, several at a time; twenty runs are terminated, ten launchers' pods killed."""
    rng = random.Random(how)
    times = 20 if how == "terminate" else 10
    took: dict[int, float] = {}
    states: list[str] = []

    def one(number: int, moment: float) -> None:
        params = {**PARAMS, "pretrain": {**PARAMS["pretrain"], "epochs": 5000 + number}}
        run = cluster.submit(params, "--name", f"{how} {number}", *RAY, "--work", f"{cluster.work}/{how}")
        pod = cluster.running(run, "pretrain")
        until(lambda: cluster.rayjobs(run), "a RayJob", SOON_SECONDS)
        time.sleep(moment)
        states.append(cluster.ray_state(run))
        if how == "kill":
            # At once, without a signal that could be handled.
            cluster.kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")
        cluster.api("POST", f"runs/{run}:terminate")
        start = time.monotonic()
        # Also none that appears late.
        until(lambda: not cluster.rayjobs(run), f"RayJobs of {run}", SOON_SECONDS, pause=1.0)
        time.sleep(5)
        until(lambda: not cluster.rayjobs(run), f"RayJobs of {run}", SOON_SECONDS, pause=1.0)
        took[number] = time.monotonic() - start

    # From the RayJob's first second to when it trains, which is a minute later.
    left = [(number, rng.uniform(0, 100)) for number in range(times)]
    while left:
        batch, left = left[:AT_A_TIME], left[AT_A_TIME:]
        threads = [threading.Thread(target=one, args=arguments) for arguments in batch]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    longest = f", the last after {max(took.values()):.0f} s" if took else ""
    were = ", ".join(f"{count} {state}" for state, count in sorted(Counter(states).items()))
    cluster.rows.append((f"RayJobs after {how}", f"gone in {len(took)} of {times}{longest}; they were: {were}"))
    assert len(took) == times and max(took.values()) <= SOON_SECONDS


class Store:
    """Kubeflow's object store, by its own credentials."""

    def __init__(self, cluster: Cluster) -> None:
        import base64
        import json

        import boto3

        secret = json.loads(cluster.kubectl("get", "secret", "mlpipeline-minio-artifact", "-o", "json"))["data"]
        key, password = (base64.b64decode(secret[name]).decode() for name in ("accesskey", "secretkey"))
        # As this machine reaches it.
        address = os.environ.get("AMLP_CLUSTER_STORE")
        if not address:
            pytest.skip("AMLP_CLUSTER_STORE is not set: the address of Kubeflow's object store")
        self.client = boto3.client(
            "s3", endpoint_url=address, aws_access_key_id=key, aws_secret_access_key=password, region_name="us-east-1"
        )

    def keys(self, run: str, task: str, artifact: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="mlpipeline", Prefix="v2/artifacts/")
        found = [one["Key"] for page in pages for one in page.get("Contents", [])]
        return [key for key in found if f"/{run}/{task}/" in key and f"/{artifact}/" in key]

    def take(self, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket="mlpipeline", Key=key)["Body"].read()
        self.client.delete_object(Bucket="mlpipeline", Key=key)
        return data

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket="mlpipeline", Key=key, Body=data)
