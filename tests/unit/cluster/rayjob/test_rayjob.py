"""The RayJob that the launcher makes, and what it says to every answer of the Kubernetes API.

The API is a real HTTP server with a script, the client the real one; only time is played, so no test waits.
"""

from __future__ import annotations

import copy
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlp.cluster import rayjob
from amlp.cluster.rayjob import Clock, Deadlines, JobRequest, Launcher, build, job_name, load_template, outcome
from amlp.errors import UserError
from tests.support.kube_api import KubeApi, kube_api

pytest.importorskip("kubernetes", reason="the launcher's client comes with the `pipelines` extra")

TEMPLATE = Path(__file__).parents[1] / "rayjob.yaml"
ENTRYPOINT = ["python", "-m", "amlp.cluster.stage", "pretrain", "--out", "s3://b/out"]
DEADLINES = Deadlines(total=7200, pre_running=900, head_lost=120, api_outage=200)
HEAD = {"head": {"podName": "head-1"}}
RUNNING: dict[str, Any] = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "rayClusterStatus": HEAD}
SUCCEEDED: dict[str, Any] = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "rayClusterStatus": HEAD}
INITIALIZING: dict[str, Any] = {
    "jobDeploymentStatus": "Initializing",
    "rayClusterStatus": {"desiredWorkerReplicas": 2, "reason": "Insufficient nvidia.com/gpu"},
}


class PlayedTime:
    """A clock that moves when somebody waits, and a little at every look."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        self.seconds += 0.001
        return self.seconds

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 30
        self.seconds += seconds


def request(**changes: Any) -> JobRequest:
    values: dict[str, Any] = {"run_id": "run-1", "task": "pretrain", "entrypoint": ENTRYPOINT, "image": "amlp:abc"}
    return JobRequest(**values | {"deadlines": DEADLINES} | changes)


@pytest.fixture
def api() -> Iterator[KubeApi]:
    with kube_api() as api:
        api.logs["head-1"] = "2026-01-01T00:00:01.000000000Z step 1\n2026-01-01T00:00:02.000000000Z step 2\n"
        yield api


def run(api: KubeApi, *, template: Path = TEMPLATE, refused: Callable[[], str] = str, **changes: Any) -> float:
    """Run the launcher; returns the seconds that it took for it."""
    wanted, time = request(**changes), PlayedTime()
    job = build(load_template(template), wanted)
    clock = Clock(time.now, time.sleep)
    Launcher(rayjob.connect(api.host), wanted, job, refused=refused, clock=clock, seed=0).run()
    return time.seconds


@given(run_id=st.text(), task=st.text(), other=st.text())
def test_a_name_is_valid_and_the_tasks_own(run_id: str, task: str, other: str) -> None:
    name = job_name(run_id, task)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 47
    assert name == job_name(run_id, task)
    assert (name == job_name(other, task)) == (run_id == other)
    assert (name == job_name(run_id, other)) == (task == other)


def test_a_name_tells_task_and_run() -> None:
    assert job_name("2f6c8a", "pretrain").startswith("amlp-pretrain-2f6c8a-")


@given(text=st.text())
def test_a_label_is_one_that_kubernetes_takes(text: str) -> None:
    assert re.fullmatch(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?", rayjob.label_value(text))
    assert len(rayjob.label_value(text)) <= 63


_VALUES = st.dictionaries(st.sampled_from("abc"), st.text(max_size=5), max_size=3)


@given(labels=_VALUES, selector=_VALUES, extra=_VALUES, workers=st.integers(1, 64), gpus=st.integers(0, 8))
def test_the_request_is_filled_in_and_the_rest_stays(
    labels: dict[str, str], selector: dict[str, str], extra: dict[str, str], workers: int, gpus: int
) -> None:
    template = load_template(TEMPLATE)
    template["metadata"]["labels"] |= labels
    template["spec"]["runtimeEnvYAML"] = str(extra)
    before = copy.deepcopy(template)
    wanted = request(workers=workers, gpus=gpus, node_selector=selector, queue="gpu", tolerations=[{"key": "gpu"}])
    job = build(template, wanted)
    assert template == before, "the template is not changed"

    metadata, spec = job["metadata"], job["spec"]
    assert metadata["name"] == wanted.name
    assert metadata["labels"].items() >= ({"team": "imaging"} | labels).items()
    assert metadata["labels"]["amlp/pipeline-run"] == "run-1" and metadata["labels"]["amlp/owner"] == "amlp"
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert spec["entrypoint"] == " ".join(ENTRYPOINT)
    assert (spec["activeDeadlineSeconds"], spec["preRunningDeadlineSeconds"]) == (7200, 900)
    group = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == workers
    pod = group["template"]["spec"]
    assert pod["nodeSelector"] == {"disk": "fast"} | selector
    assert pod["tolerations"] == [{"key": "spot", "operator": "Exists"}, {"key": "gpu"}]
    container = pod["containers"][0]
    assert container["image"] == "amlp:abc"
    limits = {"cpu": "4", "memory": "16Gi"} | ({"nvidia.com/gpu": gpus} if gpus else {})
    assert container["resources"]["limits"] == limits
    # All that the request says nothing about.
    for same in ("submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit"):
        assert spec[same] == before["spec"][same]
    assert spec["runtimeEnvYAML"] == str(extra)
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


def test_the_log_is_that_of_the_container_that_prints_it() -> None:
    job = build(load_template(TEMPLATE), request())
    assert rayjob.log_container(job) == "ray-job-submitter"
    job["spec"]["submissionMode"] = "HTTPMode"
    assert rayjob.log_container(job) == "head"
    helpers = [{"name": "job-log", "image": "template"}, {"name": "proxy", "image": "proxy:1"}]
    template = load_template(TEMPLATE)
    template["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"] += helpers
    job = build(template, request())
    assert rayjob.log_container(job) == "job-log"
    containers = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert [container["image"] for container in containers] == ["amlp:abc", "amlp:abc", "proxy:1"]


@pytest.mark.parametrize("word", ["a b", '{"a": 1}', "$(id)", "a;b", "~", ""])
def test_a_word_that_needs_quotes_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="would need quotes"):
        build(load_template(TEMPLATE), request(entrypoint=["python", word]))


@pytest.mark.parametrize(
    "text", ["", "a: [", "kind: RayJob", "apiVersion: ray.io/v1\nkind: Job\nspec: {rayClusterSpec: {}}"]
)
def test_what_is_no_rayjob_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "rayjob.yaml").write_text(text)
    with pytest.raises(UserError, match=r"rayjob\.yaml"):
        load_template(tmp_path / "rayjob.yaml")


@pytest.mark.parametrize(
    ("deployment", "job", "reason", "expected"),
    [
        ("", "", "", ("waiting", None)),
        ("Initializing", "", "", ("waiting", None)),
        ("Waiting", "", "", ("waiting", None)),
        ("Retrying", "FAILED", "AppFailed", ("waiting", None)),
        ("Scheduled", "", "", ("waiting", None)),
        ("Running", "", "", ("waiting", None)),
        ("Running", "PENDING", "", ("waiting", None)),
        ("Running", "RUNNING", "", ("running", None)),
        ("Running", "SUCCEEDED", "", ("running", None)),
        ("Complete", "SUCCEEDED", "", ("succeeded", None)),
        ("Complete", "FAILED", "AppFailed", ("failed", rayjob.JobFailed)),
        ("Complete", "STOPPED", "", ("failed", rayjob.JobStopped)),
        ("Complete", "", "", ("failed", rayjob.JobFailed)),
        ("Failed", "FAILED", "AppFailed", ("failed", rayjob.JobFailed)),
        ("Failed", "", "SubmissionFailed", ("failed", rayjob.JobFailed)),
        ("Failed", "RUNNING", "DeadlineExceeded", ("failed", rayjob.DeadlineExceeded)),
        ("Failed", "", "PreRunningDeadlineExceeded", ("failed", rayjob.NeverStarted)),
        ("Failed", "RUNNING", "JobStatusCheckTimeoutExceeded", ("failed", rayjob.HeadLost)),
        ("Failed", "STOPPED", "", ("failed", rayjob.JobStopped)),
        ("Failed", "", "ValidationFailed", ("failed", rayjob.JobInvalid)),
        ("ValidationFailed", "", "", ("failed", rayjob.JobInvalid)),
        ("Suspended", "", "", ("failed", rayjob.JobSuspended)),
        ("Suspending", "RUNNING", "", ("failed", rayjob.JobSuspended)),
    ],
)
def test_every_status_has_one_meaning(deployment: str, job: str, reason: str, expected: tuple[str, Any]) -> None:
    status = {"jobDeploymentStatus": deployment, "jobStatus": job, "reason": reason}
    assert outcome(status, queued=False) == expected


def test_a_queue_suspends_what_waits_its_turn() -> None:
    for deployment in ("Suspending", "Suspended"):
        assert outcome({"jobDeploymentStatus": deployment}, queued=True) == ("queued", None)


def test_success_streams_status_and_log_once_and_deletes(api: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.statuses = [{}, INITIALIZING, RUNNING, RUNNING, SUCCEEDED]
    run(api, workers=2, gpus=1)
    assert api.deleted
    assert api.created[0]["metadata"]["name"] == job_name("run-1", "pretrain")
    said = capsys.readouterr().out
    assert "Initializing, 0 of 2 workers ready, Insufficient nvidia.com/gpu" in said
    assert said.count("| step 1") == said.count("| step 2") == 1, "two reads of the log overlap"
    assert "container=ray-job-submitter" in next(path for _, path in api.requests if "/log" in path)


def test_a_failure_shows_the_message_and_the_last_lines(api: KubeApi) -> None:
    api.statuses = [RUNNING, SUCCEEDED | {"jobStatus": "FAILED", "reason": "AppFailed", "message": "exit code 2"}]
    with pytest.raises(rayjob.JobFailed, match=r"(?s)exit code 2.*\| step 2"):
        run(api)
    assert api.deleted


@pytest.mark.parametrize(
    ("statuses", "expected", "text"),
    [
        ([RUNNING, SUCCEEDED | {"jobStatus": "STOPPED"}], rayjob.JobStopped, "STOPPED"),
        ([{"jobDeploymentStatus": "ValidationFailed", "message": "bad spec"}], rayjob.JobInvalid, "bad spec"),
        ([RUNNING, {"jobDeploymentStatus": "Suspended"}], rayjob.JobSuspended, "Suspended"),
        ([{}], rayjob.NeverStarted, "not yet seen by KubeRay"),
        ([INITIALIZING], rayjob.NeverStarted, r"does not run after 9\d\d s .*Insufficient nvidia\.com/gpu"),
        ([{"jobDeploymentStatus": "Waiting"}], rayjob.NeverStarted, "Waiting"),
        ([RUNNING, {"jobDeploymentStatus": "Retrying"}], rayjob.NeverStarted, "Retrying"),
        ([RUNNING | {"jobStatus": "PENDING"}], rayjob.NeverStarted, "PENDING"),
        ([RUNNING], rayjob.DeadlineExceeded, r"still Running, RUNNING after 72\d\d s"),
        ([RUNNING, RUNNING | {"rayClusterStatus": {}}], rayjob.HeadLost, "head is gone"),
        ([RUNNING | {"jobStatusCheckFailureStartTime": "2026-01-01T00:00:00Z"}], rayjob.HeadLost, "head is gone"),
        ([RUNNING, 503], rayjob.ApiUnavailable, r"unavailable for 2\d\d s"),
        ([RUNNING, "drop"], rayjob.ApiUnavailable, "unavailable"),
        ([403], rayjob.NotAllowed, r"`get` rayjobs\.ray\.io in namespace amlp; see the launcher's Role"),
    ],
)
def test_limbo_and_trouble_end_with_an_outcome_and_a_deletion(
    api: KubeApi, statuses: list[Any], expected: type[Exception], text: str
) -> None:
    api.statuses = statuses
    with pytest.raises(expected, match=text):
        run(api)
    assert api.deleted


def test_a_job_that_somebody_deletes_is_reported(api: KubeApi) -> None:
    api.statuses = [RUNNING]
    api.before_get = lambda: api.jobs.clear() if api.polls == 3 else None
    with pytest.raises(rayjob.JobDeleted, match="deleted by somebody else"):
        run(api)
    assert api.deleted


def test_a_head_pod_that_is_gone_is_noticed_by_its_log(api: KubeApi) -> None:
    api.statuses = [RUNNING]
    api.before_get = lambda: api.logs.pop("head-1") if api.polls == 3 else None
    with pytest.raises(rayjob.HeadLost, match=r"(?s)head is gone for 1\d\d s.*step 2"):
        run(api)
    assert api.deleted


def test_trouble_that_passes_is_borne(api: KubeApi) -> None:
    api.statuses = [500, 503, {}, "drop", 429, RUNNING, 502, 504, 500, RUNNING, SUCCEEDED]
    api.creations = [500, "drop"]
    api.deletions = [500, 503]
    run(api)
    assert api.deleted


# Of a request that hangs: the only time here that passes for real.
HASTY = replace(DEADLINES, answer=0.1)


def test_requests_that_are_not_answered_are_given_up_and_repeated(api: KubeApi) -> None:
    api.creations, api.deletions = ["hang"], ["hang"]
    api.statuses = ["hang", RUNNING, "hang", SUCCEEDED]
    run(api, deadlines=HASTY)
    assert api.deleted and (api.verbs("POST"), api.verbs("DELETE")) == (2, 2)


def test_an_api_that_does_not_answer_any_more_ends_the_wait(api: KubeApi) -> None:
    api.statuses = [RUNNING, "hang"]
    with pytest.raises(rayjob.ApiUnavailable, match=r"unavailable for 2\d\d s: .*[Tt]imed? ?out"):
        run(api, deadlines=HASTY)
    assert api.deleted


def test_a_log_that_stops_coming_does_not_end_a_job_that_runs(api: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    text, api.logs["head-1"] = api.logs["head-1"], "hang"
    api.statuses = [RUNNING, RUNNING, RUNNING, SUCCEEDED]
    api.before_get = lambda: api.logs.update({"head-1": text}) if api.polls == 3 else None
    run(api, deadlines=HASTY)
    assert api.deleted and capsys.readouterr().out.count("| step 2") == 1


def test_a_job_in_a_queue_may_be_suspended_and_run_again(api: KubeApi) -> None:
    suspended = {"jobDeploymentStatus": "Suspended"}
    api.statuses = [suspended, suspended, RUNNING, suspended, RUNNING, SUCCEEDED]
    run(api, queue="gpu")
    assert api.deleted


def test_time_in_a_queue_is_not_time_without_a_gpu(api: KubeApi) -> None:
    held_back: list[Any] = [{"jobDeploymentStatus": "Suspended"}] * 250
    api.statuses = [*held_back, INITIALIZING, INITIALIZING, RUNNING, *held_back, INITIALIZING, RUNNING, SUCCEEDED]
    assert run(api, queue="gpu") > 2 * DEADLINES.pre_running
    # Once let go, it has to start; and it does not wait for ever.
    api.statuses = [*held_back, INITIALIZING]
    with pytest.raises(rayjob.NeverStarted, match=r"does not run after 9\d\d s"):
        run(api, queue="gpu")
    api.statuses = held_back[:1]
    with pytest.raises(rayjob.DeadlineExceeded, match=r"still Suspended after 72\d\d s"):
        run(api, queue="gpu")
    assert api.deleted


def test_a_queue_that_the_template_names_may_suspend_too(api: KubeApi, project: Path) -> None:
    suspended = {"jobDeploymentStatus": "Suspended"}
    api.statuses = [suspended, RUNNING, suspended, RUNNING, SUCCEEDED]
    run(api, template=project / "k8s/overlays/prod/rayjob.yaml")
    assert api.deleted
    api.statuses = [suspended]
    with pytest.raises(rayjob.JobSuspended, match="Suspended"):
        run(api, template=project / "k8s/base/runs/rayjob.yaml")
    assert api.deleted


def test_a_restarted_launcher_resumes_with_the_job_that_is_there(
    api: KubeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.jobs[request().name] = build(load_template(TEMPLATE), request())
    api.statuses = [RUNNING, SUCCEEDED]
    run(api)
    assert "exists already: continuing with it" in capsys.readouterr().out
    assert api.deleted and not api.created


def test_a_job_whose_creation_was_not_answered_is_found_again(api: KubeApi) -> None:
    api.creations = ["created, then drop"]
    api.statuses = [RUNNING, SUCCEEDED]
    run(api)
    assert api.deleted and api.verbs("POST") == 2 and not api.created


def test_the_job_of_a_pod_that_is_gone_is_made_anew(api: KubeApi) -> None:
    """Kubernetes deletes it with its owner, at any moment; one of the same pod is continued with."""
    api.statuses = [SUCCEEDED]
    before = build(load_template(TEMPLATE), request(pod_name="try-1", pod_uid="u1"))
    api.jobs[before["metadata"]["name"]] = before
    run(api, pod_name="try-1", pod_uid="u1")
    assert api.created == []
    api.jobs[before["metadata"]["name"]] = before
    run(api, pod_name="try-2", pod_uid="u2")
    [made] = api.created
    assert made["metadata"]["ownerReferences"][0]["uid"] == "u2" and api.deleted


def test_a_job_that_runs_something_else_is_left_alone(api: KubeApi) -> None:
    api.jobs[request().name] = build(load_template(TEMPLATE), request(entrypoint=["sleep", "1"]))
    with pytest.raises(UserError, match="runs `sleep 1`, not"):
        run(api)
    assert api.jobs and api.verbs("DELETE") == 0


def test_a_job_that_is_being_deleted_is_waited_for(api: KubeApi) -> None:
    old = build(load_template(TEMPLATE), request())
    old["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    api.jobs[request().name] = old
    api.before_get = lambda: api.jobs.clear() if api.polls == 3 else None
    api.statuses = [{}, {}, {}, SUCCEEDED]
    run(api)
    assert len(api.created) == 1 and api.deleted


@pytest.mark.parametrize(
    ("code", "expected", "text"),
    [
        (403, rayjob.NotAllowed, "`create` rayjobs.ray.io"),
        (401, rayjob.NotAllowed, "401"),
        (404, rayjob.JobInvalid, "is KubeRay installed"),
        (422, rayjob.JobInvalid, "the API says Invalid"),
    ],
)
def test_a_job_that_is_not_created_is_not_deleted(
    api: KubeApi, code: int, expected: type[Exception], text: str
) -> None:
    # Often: a server that starts forbids everything for a moment.
    api.creations = [code] * 50
    with pytest.raises(expected, match=text):
        run(api)
    assert api.verbs("DELETE") == 0


def test_a_mistake_of_the_user_is_tried_once(api: KubeApi) -> None:
    """KubeRay starts a job again whatever its exit code; the job says why it ended, and the launcher ends it."""
    failed = {"failed": 1, "jobDeploymentStatus": "Retrying", "jobStatus": "FAILED", "rayClusterStatus": HEAD}
    asked: list[int] = []

    def refused() -> str:
        asked.append(1)
        return "pretrain.batch: 9 images can't be shared evenly"

    for after in (failed, {**RUNNING, "failed": 1}, {**failed, "jobDeploymentStatus": "Failed"}):
        api.statuses = [INITIALIZING, RUNNING, after, RUNNING]
        with pytest.raises(UserError, match="shared evenly"):
            run(api, refused=refused)
        assert api.deleted
    assert len(asked) == 3
    # Of anything else KubeRay's next try is waited for.
    api.statuses = [RUNNING, failed, {**RUNNING, "failed": 1}, SUCCEEDED]
    run(api)


def test_tries_of_kuberay_are_shown_and_its_copy_of_the_log_is_not(
    api: KubeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "Job entrypoint command failed with exit code 1, last available logs:\nline one of the log"
    failed = {"failed": 1, "jobDeploymentStatus": "Retrying", "jobStatus": "FAILED", "message": message}
    api.statuses = [RUNNING, failed | {"reason": "AppFailed"}, SUCCEEDED]
    run(api)
    said = capsys.readouterr().out
    assert "Retrying, FAILED, 1 try failed, AppFailed, Job entrypoint command failed with exit code 1" in said
    assert "line one of the log" not in said


def test_what_does_not_start_says_why_where_events_tell(api: KubeApi) -> None:
    def event(name: str, reason: str, message: str, at: int) -> dict[str, Any]:
        time = f"2026-01-01T00:00:{at:02}Z"
        return {"involvedObject": {"name": name}, "reason": reason, "message": message, "lastTimestamp": time}

    name = request().name
    api.events = [
        event(f"{name}-x2zq4-worker-1", "FailedScheduling", "0/3 nodes: Insufficient nvidia.com/gpu", 2),
        event(f"{name}-x2zq4-head-1", "Failed", "image not found", 1),
        event("another-pod", "Failed", "not ours", 3),
    ]
    api.statuses = [INITIALIZING]
    with pytest.raises(rayjob.NeverStarted) as raised:
        run(api)
    said = str(raised.value)
    assert said.index("event: Failed: image not found") < said.index("FailedScheduling: 0/3 nodes: Insufficient")
    assert "not ours" not in said
    api.events = 403
    with pytest.raises(rayjob.NeverStarted, match="get events"):
        run(api)


def test_head_and_workers_ask_for_what_was_said(api: KubeApi) -> None:
    template = load_template(TEMPLATE)
    amounts = {"head": {"cpu": "300m", "memory": "2Gi"}, "worker": {"cpu": "500m"}}
    made = build(template, request(**amounts, gpus=1))["spec"]["rayClusterSpec"]
    head = made["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]
    worker = made["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]
    assert head["requests"] == {"cpu": "300m", "memory": "2Gi"} and head["limits"] == {"memory": "2Gi"}
    assert worker["requests"]["cpu"] == "500m" and "cpu" not in worker["limits"]
    assert worker["requests"]["nvidia.com/gpu"] == worker["limits"]["nvidia.com/gpu"] == 1
    as_it_was = template["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0].get(
        "resources"
    )
    plain = build(template, request())["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert plain["containers"][0].get("resources") == as_it_was


def test_an_api_server_that_starts_forbids_for_a_moment(api: KubeApi) -> None:
    api.creations = [403, 403]
    api.statuses = [RUNNING, 403, 401, SUCCEEDED]
    run(api)
    assert len(api.created) == 1 and api.deleted


def test_a_full_quota_is_no_missing_right(api: KubeApi) -> None:
    api.creations = ["quota"]
    with pytest.raises(
        rayjob.JobInvalid, match=r"(?s)a quota of namespace amlp is full: .*exceeded quota: amlp, .*Kueue"
    ):
        run(api)
    assert not api.creations and api.verbs("DELETE") == 0


def test_a_progress_bar_does_not_silence_the_log(api: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        "step 1",
        "epoch:   0%|    | 0/9\repoch:  50%|██  | 4/9\repoch: 100%|████| 9/9",
        "a form feed \x0c and a line separator \u2028 are text",
        "with the end of a line of Windows\r",
        "step 2",
    ]
    stamped = [f"2026-01-01T00:00:{second:02}.000000000Z {line}" for second, line in enumerate(lines)]
    api.logs["head-1"] = "\n".join(["Z no stamp", *stamped, ""])
    api.statuses = [RUNNING, RUNNING, SUCCEEDED]
    run(api)
    printed = [line for line in capsys.readouterr().out.split("\n") if line.startswith("  | ")]
    assert printed == [f"  | {line}" for line in (lines[0], "epoch: 100%|████| 9/9", lines[2], lines[3][:-1], lines[4])]


def test_logs_that_may_not_be_read_are_reported_once(api: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.logs["head-1"] = 403
    api.statuses = [RUNNING, RUNNING, SUCCEEDED]
    run(api)
    assert capsys.readouterr().out.count("not allowed to `get` pods/log") == 1
    assert api.deleted


def test_a_job_that_can_not_be_deleted_is_reported_with_the_command(
    api: KubeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.statuses, api.deletions = [SUCCEEDED], [403] * 50
    run(api)
    assert f"kubectl -n amlp delete rayjob {request().name}" in capsys.readouterr().out


LAUNCH = """
import sys
from pathlib import Path
from amlp import logs
from amlp.cluster.rayjob import JobRequest, submit

logs.configure()
template, host, *entrypoint = sys.argv[1:]
request = JobRequest(run_id="run-1", task="pretrain", image="amlp:abc", entrypoint=entrypoint)
submit(template=Path(template), request=request, host=host)
"""


def test_sigterm_deletes_the_job(api: KubeApi, project: Path) -> None:
    api.statuses = [RUNNING]
    command = [sys.executable, "-c", LAUNCH, str(TEMPLATE), api.host, *ENTRYPOINT]
    process = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        if "step 2" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Interrupted: asked to end by SIGTERM" in said
    assert api.deleted


def test_the_signal_handler_is_as_before(api: KubeApi) -> None:
    before = signal.getsignal(signal.SIGTERM)
    api.statuses = [SUCCEEDED]
    run(api)
    assert signal.getsignal(signal.SIGTERM) is before
