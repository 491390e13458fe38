"""RayJobs that their launcher could not delete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amlp.cluster.rayjob import JobRequest, build, connect, load_template
from amlp.cluster.sweep import main, sweep, why_over
from tests.support.kube_api import KubeApi, kube_api

TEMPLATE = Path(__file__).with_name("rayjob.yaml")


def pod(uid: str = "u1", *, phase: str = "Running", **states: dict[str, Any]) -> dict[str, Any]:
    containers = [{"name": name, "state": state} for name, state in states.items()]
    return {"metadata": {"name": "p", "uid": uid}, "status": {"phase": phase, "containerStatuses": containers}}


RUNNING, ENDED = {"running": {}}, {"terminated": {"exitCode": 143}}


@pytest.fixture
def api() -> Iterator[KubeApi]:
    with kube_api() as api:
        yield api


def launched(api: KubeApi, task: str, *, pod_name: str, pod_uid: str) -> str:
    """A RayJob as the launcher makes it."""
    request = JobRequest(run_id="r", task=task, image="amlp:1", entrypoint=["true"], pod_name=pod_name, pod_uid=pod_uid)
    job = build(load_template(TEMPLATE), request)
    job["metadata"]["uid"] = f"uid-of-{task}"
    api.jobs[request.name] = job
    return request.name


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (pod(main=RUNNING), ""),
        (pod(phase="Pending"), ""),
        # Argo's own container still writes the outputs of one that runs, and of one that has ended.
        (pod(main=RUNNING, wait=ENDED), ""),
        (pod(main=ENDED, wait=RUNNING), "its container has ended with exit code 143"),
        (pod(phase="Failed"), "its pod has failed"),
        (pod(phase="Succeeded"), "its pod has succeeded"),
        (pod("u2", main=RUNNING), "its pod is gone"),
        (None, "its pod is gone"),
    ],
)
def test_a_task_is_over_when_its_container_is(found: Any, reason: str) -> None:
    assert why_over(found, "u1") == reason


def test_only_rayjobs_of_ended_tasks_are_deleted(api: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.pods = {"alive": pod(main=RUNNING), "ended": pod(main=ENDED)}
    kept = launched(api, "pretrain", pod_name="alive", pod_uid="u1")
    ended = launched(api, "scratch", pod_name="ended", pod_uid="u1")
    gone = launched(api, "finetune", pod_name="nowhere", pod_uid="u1")
    by_hand = launched(api, "by-hand", pod_name="", pod_uid="")
    deleting = launched(api, "deleting", pod_name="nowhere", pod_uid="u1")
    api.jobs[deleting]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert main(["--namespace", "amlp", "--once", "--host", api.host]) == 0
    assert api.jobs.keys() == {kept, by_hand, deleting}
    said = capsys.readouterr().out
    assert f"RayJob {ended}: deleted, because its container has ended" in said and f"RayJob {gone}: deleted" in said
    assert any("labelSelector=" in path for _, path in api.requests)


def test_another_rayjob_of_the_same_name_is_not_meant(api: KubeApi) -> None:
    """The next try's, made between the look and the deletion."""
    name = launched(api, "pretrain", pod_name="nowhere", pod_uid="u1")
    found = sweep(connect(api.host), "amlp")

    def replaced() -> Any:
        api.jobs[name]["metadata"]["uid"] = "another"
        return 404

    api.pods = _Asked(replaced)
    assert list(found) == [] and name in api.jobs


class _Asked(dict[str, Any]):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def get(self, *_: Any) -> Any:
        return self.answer()


@pytest.mark.parametrize("stuck", ["pod", "deletion"])
def test_one_rayjob_that_fails_does_not_keep_the_others(
    api: KubeApi, capsys: pytest.CaptureFixture[str], stuck: str
) -> None:
    api.pods = {"broken": 500 if stuck == "pod" else pod(main=ENDED)}
    api.deletions = [] if stuck == "pod" else [403]
    kept = launched(api, "pretrain", pod_name="broken", pod_uid="u1")
    deleted = launched(api, "scratch", pod_name="nowhere", pod_uid="u1")
    assert main(["--namespace", "amlp", "--once", "--host", api.host]) == 1
    assert api.jobs.keys() == {kept}
    said = capsys.readouterr()
    assert f"RayJob {deleted}: deleted" in said.out
    assert f"{'This may pass' if stuck == 'pod' else 'Failed'}: RayJob {kept}: " in said.err


def test_an_api_that_is_away_ends_nothing(api: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    name = launched(api, "pretrain", pod_name="broken", pod_uid="u1")
    api.pods = {"broken": 500}
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        api.pods = {"broken": pod(main=ENDED)}
        if len(slept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        main(["--namespace", "amlp", "--host", api.host], sleep=sleep)
    assert "This may pass" in capsys.readouterr().err and name not in api.jobs
    api.pods = {"broken": 403}
    launched(api, "pretrain", pod_name="broken", pod_uid="u1")
    assert main(["--namespace", "amlp", "--once", "--host", api.host]) == 1
