r"""Submit a RayJob, watch it to its end, and delete it whatever happens.

    python -m amlp.cluster.rayjob --template k8s/base/runs/rayjob.yaml --image IMAGE --run-id RUN --task pretrain \
        --workers 2 --gpus 1 -- python -m amlp.cluster.stage pretrain ...

The service account needs create, get and delete on rayjobs.ray.io and get on pods/log, nothing else. The head is the
only pod that a RayJob's status names, and finding a submitter's own pod would need the right to list pods; so the job's
log is that of a container of the head: `job-log` of our template, or KubeRay's submitter in SidecarMode.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import re
import shlex
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from amlp.errors import UserError

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
GPU = "nvidia.com/gpu"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
RUN_LABEL, OWNER_LABEL, TASK_LABEL = "amlp/pipeline-run", "amlp/owner", "amlp/task"
# Containers of the head that print the job's log: our template's, and KubeRay's in SidecarMode.
JOB_LOG, SUBMITTER = "job-log", "ray-job-submitter"
# KubeRay appends to it for the cluster, the pods and the services, and a label holds 63 characters.
NAME_LIMIT = 47
# What Kubernetes puts before each line of a log.
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
# Lines of the log that an error repeats.
TAIL = 30
# Seconds between two looks at a RayJob. The connection stays open from one look to the next, so that a deletion at the
# last moment does not wait for a new one.
LOOK = 10.0


class RayJobError(Exception):
    """The RayJob did not succeed; `exit_code` tells how, for those who read nothing else."""

    exit_code = 1


class JobFailed(RayJobError):
    """The training ended with an error; its log tells which."""

    exit_code = 10


class JobStopped(RayJobError):
    """Somebody stopped the Ray job."""

    exit_code = 11


class JobInvalid(RayJobError):
    """Kubernetes or KubeRay refused the RayJob as it is."""

    exit_code = 12


class JobSuspended(RayJobError):
    """Somebody suspended the RayJob, and no queue will resume it."""

    exit_code = 13


class NeverStarted(RayJobError):
    """The job did not run within the pre-running deadline: no GPU came, or an image does not load."""

    exit_code = 14


class HeadLost(RayJobError):
    """The RayJob says Running, and its head pod is gone or does not answer."""

    exit_code = 15


class JobDeleted(RayJobError):
    """Somebody deleted the RayJob while it was watched."""

    exit_code = 16


class DeadlineExceeded(RayJobError):
    """The job ran for longer than it may."""

    exit_code = 17


class ApiUnavailable(RayJobError):
    """The Kubernetes API did not answer, or only with errors, for longer than is borne."""

    exit_code = 18


class NotAllowed(RayJobError):
    """The service account lacks a right."""

    exit_code = 19


class Interrupted(RayJobError):
    """This process was asked to end."""

    exit_code = 143


@dataclass(frozen=True)
class Deadlines:
    """How long to wait for what, in seconds."""

    # From the start to the end, time in a queue included.
    total: float = 24 * 3600
    # From submission, a retry or the end of a suspension to the first step of the job.
    pre_running: float = 1800
    # A job that says Running without a head.
    head_lost: float = 180
    # The API's errors in a row.
    api_outage: float = 300
    # "Forbidden" in a row: a server that starts says so until it has read its rules.
    forbidden: float = 30
    # One request to the API that is accepted and not answered.
    answer: float = 30

    @property
    def request(self) -> tuple[float, float]:
        """To connect and to read: the client of Kubernetes takes no notice of a single number that is no int."""
        return self.answer, self.answer

    @property
    def last_request(self) -> tuple[float, float]:
        """Likewise, where Kubernetes soon kills this process."""
        return min(5.0, self.answer), min(5.0, self.answer)


@dataclass(frozen=True)
class JobRequest:
    """What to run and on what.

    Args:
        run_id: of the pipeline run; with `task` it names the RayJob, so that a restarted launcher finds it again.
        entrypoint: words of the command that Ray runs on the head.
        gpus: of each worker.
        head: cores and memory that the head asks for, as Kubernetes writes them; empty for the template's.
        worker: likewise, of each worker.
        node_selector: labels of the nodes for the workers.
        tolerations: taints that the workers bear, as Kubernetes writes them.
        queue: of Kueue; empty without.
        pod_name: of the pod that launches. The RayJob is its property, so that Kubernetes deletes it with the pod at
            the latest, should nobody else.
        pod_uid: of that pod; empty where no pod launches.
    """

    run_id: str
    task: str
    image: str
    entrypoint: Sequence[str] = ()
    namespace: str = "amlp"
    owner: str = "amlp"
    workers: int = 1
    gpus: int = 0
    head: Mapping[str, str] = field(default_factory=dict)
    worker: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    queue: str = ""
    pod_name: str = ""
    pod_uid: str = ""
    deadlines: Deadlines = field(default_factory=Deadlines)

    @property
    def name(self) -> str:
        return job_name(self.run_id, self.task)


@dataclass(frozen=True)
class Clock:
    """Time in seconds, and waiting; tests bring one that does not wait."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def job_name(run_id: str, task: str) -> str:
    """Name the RayJob of a task in a pipeline run: the same for the same, another for any other.

    At most 47 characters of a-z, 0-9 and -, starting with a letter, for services are named after it.
    """
    digest = hashlib.sha256(f"{run_id}\0{task}".encode()).hexdigest()[:10]
    readable = re.sub(r"[^a-z0-9]+", "-", f"{task}-{run_id}".lower()).strip("-")
    readable = readable[: NAME_LIMIT - len(f"amlp--{digest}")].strip("-")
    return "-".join(part for part in ("amlp", readable, digest) if part)


def label_value(text: str) -> str:
    """Return the text as a label can hold it: at most 63 of letters, digits, `-`, `_` and `.`, alphanumeric ends."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:63].strip("-_.")


def load_template(path: Path) -> dict[str, Any]:
    """Read the RayJob that `build` fills in.

    Raises:
        UserError: it is missing, or no RayJob with a head and one group of workers.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; expected the RayJob template, such as k8s/base/runs/rayjob.yaml.")
    try:
        template = yaml.safe_load(path.read_text(encoding="utf-8"))
        cluster = template["spec"]["rayClusterSpec"]
        pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        whole = all(pod["template"]["spec"]["containers"] for pod in pods) and len(pods) == 2
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a RayJob with rayClusterSpec, head and workers: {error!r}") from error
    if not whole or template.get("kind") != "RayJob" or template.get("apiVersion") != f"{GROUP}/{VERSION}":
        raise UserError(f"{path}: expected one ray.io/v1 RayJob with containers in its head and one worker group.")
    return dict(template)


def build(template: Mapping[str, Any], request: JobRequest) -> dict[str, Any]:
    """Fill the template in; what the request says nothing about stays.

    Raises:
        UserError: a word of the entry point would not reach the job as it is, or a number is out of range.
    """
    for word in request.entrypoint:
        # KubeRay, a shell and `ray job submit` take the command apart in turn, each in its own way.
        if shlex.quote(word) != word:
            raise UserError(f"entrypoint: {word!r} would need quotes; put it into the parameters' file.")
    if request.workers < 1 or request.gpus < 0 or not request.entrypoint:
        raise UserError(f"RayJob {request.name}: expected an entry point, 1 worker or more, 0 GPUs or more each.")
    job = copy.deepcopy(dict(template))
    metadata = job.setdefault("metadata", {})
    metadata |= {"name": request.name, "namespace": request.namespace}
    labels = {
        RUN_LABEL: label_value(request.run_id),
        TASK_LABEL: label_value(request.task),
        OWNER_LABEL: label_value(request.owner),
    }
    if request.queue:
        labels[QUEUE_LABEL] = request.queue
    metadata["labels"] = (metadata.get("labels") or {}) | labels
    if request.pod_uid:
        # Needs no right beyond those to create and delete, as it holds nothing back.
        metadata["ownerReferences"] = [
            {"apiVersion": "v1", "kind": "Pod", "name": request.pod_name, "uid": request.pod_uid}
        ]
    spec = job["spec"]
    spec["entrypoint"] = shlex.join(request.entrypoint)
    # Should this process die, KubeRay ends what nobody watches.
    spec["activeDeadlineSeconds"] = int(request.deadlines.total)
    spec["preRunningDeadlineSeconds"] = int(request.deadlines.pre_running)
    head, workers = spec["rayClusterSpec"]["headGroupSpec"], spec["rayClusterSpec"]["workerGroupSpecs"][0]
    for group in (head, workers):
        containers = group["template"]["spec"]["containers"]
        ours = containers[0]["image"]
        # Helpers of the same image change with it, others stay.
        for container in containers:
            if container["image"] == ours:
                container["image"] = request.image
    workers |= {"replicas": request.workers, "minReplicas": request.workers, "maxReplicas": request.workers}
    for group, amounts in ((head, request.head), (workers, request.worker)):
        if amounts:
            _resize(group["template"]["spec"]["containers"][0], amounts)
    pod = workers["template"]["spec"]
    resources = pod["containers"][0].setdefault("resources", {})
    for kind in ("requests", "limits"):
        amounts = resources.setdefault(kind, {})
        amounts.pop(GPU, None)
        if request.gpus:
            amounts[GPU] = request.gpus
    if request.node_selector:
        pod["nodeSelector"] = (pod.get("nodeSelector") or {}) | dict(request.node_selector)
    if request.tolerations:
        pod["tolerations"] = [*(pod.get("tolerations") or []), *map(dict, request.tolerations)]
    return job


def _resize(container: dict[str, Any], amounts: Mapping[str, str]) -> None:
    """Let a container ask for other cores and memory; memory is the limit too, and cores have none, as in other tasks.

    KubeRay takes the cores asked for as Ray's, where no limit is set.
    """
    resources = container.setdefault("resources", {})
    resources["requests"] = {**(resources.get("requests") or {}), **amounts}
    limits = {key: value for key, value in (resources.get("limits") or {}).items() if key not in amounts}
    resources["limits"] = limits | {key: value for key, value in amounts.items() if key == "memory"}


def outcome(status: Mapping[str, Any], *, queued: bool) -> tuple[str, type[RayJobError] | None]:
    """Say what a RayJob's status means.

    Args:
        status: as KubeRay writes it; empty before KubeRay has seen the job.
        queued: whether Kueue decides when it runs.

    Returns:
        `succeeded`; `failed` and the error to raise; `running`; `queued`, where Kueue holds the job back; or `waiting`,
        for all else before the job's first step.
    """
    deployment, job = status.get("jobDeploymentStatus") or "", status.get("jobStatus") or ""
    reason = status.get("reason") or ""
    if deployment == "Complete":
        # A job can be over for Ray and not for KubeRay, so Ray's word counts only once KubeRay agrees.
        ended = {"SUCCEEDED": ("succeeded", None), "STOPPED": ("failed", JobStopped)}
        return ended.get(job, ("failed", JobFailed))
    if deployment == "ValidationFailed" or (deployment == "Failed" and reason == "ValidationFailed"):
        return "failed", JobInvalid
    if deployment == "Failed":
        by_reason: dict[str, type[RayJobError]] = {
            "DeadlineExceeded": DeadlineExceeded,
            "PreRunningDeadlineExceeded": NeverStarted,
            "JobStatusCheckTimeoutExceeded": HeadLost,
        }
        return "failed", by_reason.get(reason, JobStopped if job == "STOPPED" else JobFailed)
    if deployment in ("Suspending", "Suspended"):
        return ("queued", None) if queued else ("failed", JobSuspended)
    # KubeRay says Running from the submission on; the job itself may still wait for a place.
    if deployment == "Running" and job not in ("", "PENDING"):
        return "running", None
    return "waiting", None


def log_container(job: Mapping[str, Any]) -> str:
    """Return the head's container that prints the job's log, or Ray's own where none does."""
    names = [c["name"] for c in job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]]
    if JOB_LOG in names:
        return JOB_LOG
    return SUBMITTER if job["spec"].get("submissionMode") == "SidecarMode" else str(names[0])


def _describe(status: Mapping[str, Any]) -> str:
    """One line: both statuses, why, and how many workers are there."""
    parts = [status.get("jobDeploymentStatus") or "not yet seen by KubeRay", status.get("jobStatus") or ""]
    cluster = status.get("rayClusterStatus") or {}
    if "desiredWorkerReplicas" in cluster:
        parts.append(f"{cluster.get('readyWorkerReplicas', 0)} of {cluster['desiredWorkerReplicas']} workers ready")
    if failed := status.get("failed"):
        parts.append(f"{failed} {'try' if failed == 1 else 'tries'} failed")
    # KubeRay appends the job's log to the message, from its second line on.
    message = (status.get("message") or "").partition("\n")[0]
    parts += [status.get("reason") or "", " ".join(message.split())[:300], cluster.get("reason") or ""]
    return ", ".join(part for part in parts if part)


class Launcher:
    """Creates, watches and deletes one RayJob.

    Args:
        api: a `kubernetes.client.ApiClient`.
        refused: returns the message of an error that the user caused, once the job recorded one; else nothing. KubeRay
            starts a job again whatever its exit code, so the launcher ends such a job.
    """

    def __init__(
        self,
        api: Any,
        request: JobRequest,
        job: Mapping[str, Any],
        *,
        refused: Callable[[], str] = str,
        clock: Clock | None = None,
        seed: int | None = None,
    ) -> None:
        from kubernetes import client

        self.request, self.job, self.refused = request, job, refused
        self.clock = clock or Clock()
        self.random = random.Random(seed)
        self.objects = client.CustomObjectsApi(api)
        # Its own connections: a long log must not be in the way of the deletion.
        self.core = client.CoreV1Api(client.ApiClient(api.configuration))
        self.where = {"group": GROUP, "version": VERSION, "namespace": request.namespace, "plural": PLURAL}
        self.tail: deque[str] = deque(maxlen=TAIL)
        self.ours = False
        self._head = ""
        self._last_line = ""
        self._last_read: float | None = None
        self._log_refused = False

    def run(self) -> None:
        """Create the RayJob or go on with the one of an earlier launcher, and wait for its success.

        Raises:
            RayJobError: it ended otherwise; one class an outcome. The RayJob is deleted all the same.
            UserError: a RayJob of this name runs something else.
        """
        with _told_to_end() as deaf:
            try:
                try:
                    self._create()
                    self._watch()
                    self._say("succeeded")
                finally:
                    # Nested, so that a SIGTERM in this very moment does not stop the deletion either.
                    deaf()
            finally:
                self._delete()

    def _say(self, text: str) -> None:
        print(f"RayJob {self.request.name}: {text}", flush=True)

    def _request(self, verb: str, call: Callable[[], Any], *, seconds: float, passing: tuple[int, ...] = ()) -> Any:
        """Call the API; wait and repeat while it is unavailable.

        Raises:
            ApiException: an answer in `passing`.
            RayJobError: any other refusal, or no answer for `seconds`.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        since, attempt = self.clock.now(), 0
        while True:
            try:
                return call()
            except ApiException as error:
                if error.status in passing:
                    raise
                if error.status in (401, 403):
                    answer = _answer(error)
                    if "exceeded quota" in answer:
                        raise JobInvalid(
                            f"a quota of namespace {self.request.namespace} is full: {answer}\nEnd other RayJobs, "
                            "raise the ResourceQuota, or name a Kueue queue, where jobs wait."
                        ) from error
                    if self.clock.now() - since >= min(self.request.deadlines.forbidden, seconds):
                        raise NotAllowed(
                            f"Kubernetes answers {error.status} {error.reason}: {answer}\nThis service account must be "
                            f"allowed to `{verb}` {PLURAL}.{GROUP} in namespace {self.request.namespace}; see the "
                            "launcher's Role and RoleBinding."
                        ) from error
                elif error.status and error.status < 500 and error.status != 429:
                    raise JobInvalid(f"Kubernetes refuses to {verb} {self.request.name}: {_answer(error)}") from error
                trouble = f"{error.status} {error.reason}"
            except (HTTPError, OSError) as error:
                trouble = str(error)
            attempt += 1
            waited = self.clock.now() - since
            if waited >= seconds:
                raise ApiUnavailable(f"the Kubernetes API is unavailable for {waited:.0f} s: {trouble}")
            if attempt in (1, 5, 20):
                self._say(f"the Kubernetes API is unavailable, trying again: {trouble}")
            self._pause(attempt)

    def _pause(self, attempt: int, longest: float = 30.0) -> None:
        """Wait 1 s, then longer; with jitter, for many launchers wait for the same API server."""
        self.clock.sleep(min(longest, 1.5 ** min(attempt, 20)) * self.random.uniform(0.5, 1.0))

    def _create(self) -> None:
        from kubernetes.client import ApiException

        deadlines, attempt, since = self.request.deadlines, 0, self.clock.now()
        while True:
            # Before the call: asked to end in the middle of it, we can't know whether the RayJob exists.
            self.ours = True
            try:
                self._request(
                    "create",
                    lambda: self.objects.create_namespaced_custom_object(
                        **self.where, body=self.job, _request_timeout=deadlines.request
                    ),
                    seconds=deadlines.api_outage,
                    passing=(404, 409),
                )
                self._say(f"created in namespace {self.request.namespace}")
                return
            except ApiException as error:
                self.ours = False
                if error.status == 404:
                    raise JobInvalid(
                        f"no namespace {self.request.namespace}, or no rayjobs.ray.io in this cluster: is KubeRay "
                        f"installed? {_answer(error)}"
                    ) from error
            except RayJobError as error:
                self.ours = isinstance(error, ApiUnavailable | Interrupted)
                raise
            found = self._get()
            if found and not found["metadata"].get("deletionTimestamp"):
                wanted, there = self.job["spec"]["entrypoint"], found["spec"].get("entrypoint")
                if there != wanted:
                    raise UserError(
                        f"RayJob {self.request.name} exists and runs `{there}`, not `{wanted}`; delete it or take "
                        "another run id."
                    )
                self.ours = True
                if self._is_of_this_pod(found):
                    self._say("exists already: continuing with it")
                    return
                # Kubernetes deletes it with that pod, and the training resumes from its checkpoint.
                self._say("is that of an earlier try, whose pod is gone: making it anew")
                self._delete()
            if self.clock.now() - since >= deadlines.pre_running:
                raise NeverStarted(f"an earlier RayJob {self.request.name} is being deleted and does not go away")
            attempt += 1
            self._pause(attempt)

    def _is_of_this_pod(self, job: Mapping[str, Any]) -> bool:
        owners = {one.get("uid") for one in job["metadata"].get("ownerReferences") or [] if one.get("kind") == "Pod"}
        return not self.request.pod_uid or owners <= {self.request.pod_uid}

    def _get(self) -> dict[str, Any] | None:
        """Return the RayJob, or None when there is none."""
        from kubernetes.client import ApiException

        try:
            found: dict[str, Any] = self._request(
                "get",
                lambda: self.objects.get_namespaced_custom_object(
                    **self.where, name=self.request.name, _request_timeout=self.request.deadlines.request
                ),
                seconds=self.request.deadlines.api_outage,
                passing=(404,),
            )
        except ApiException:
            return None
        return found

    def _watch(self) -> None:
        deadlines = self.request.deadlines
        started = waiting = self.clock.now()
        headless: float | None = None
        said, unchanged = "", 0
        while True:
            found = self._get()
            if found is None:
                raise JobDeleted(self._with_tail("was deleted by somebody else while it was watched"))
            status = found.get("status") or {}
            text = _describe(status)
            if text != said:
                self._say(text)
                unchanged = 0
            said = text
            # By its own label: the template may bring one, and a job that was there already has what it was made with.
            what, error = outcome(status, queued=QUEUE_LABEL in (found["metadata"].get("labels") or {}))
            head_there = self._follow_log(status)
            if what == "succeeded":
                return
            # KubeRay counts the tries that failed, and starts the next.
            if (error or status.get("failed")) and (message := self.refused()):
                raise UserError(message)
            if error:
                raise error(self._with_tail(text + (self._events(status) if error is NeverStarted else "")))
            now = self.clock.now()
            if what in ("running", "queued"):
                # A queue may be long; the time in it counts for the total alone.
                waiting = now
            elif now - waiting >= deadlines.pre_running:
                raise NeverStarted(
                    self._with_tail(
                        f"does not run after {now - waiting:.0f} s ({text}); no node with the GPUs asked for, an image "
                        f"that can't be pulled or a full quota are the usual reasons{self._events(status)}"
                    )
                )
            lost = what == "running" and (not head_there or bool(status.get("jobStatusCheckFailureStartTime")))
            headless = (headless if headless is not None else now) if lost else None
            if headless is not None and now - headless >= deadlines.head_lost:
                raise HeadLost(self._with_tail(f"says {text}, and its head is gone for {now - headless:.0f} s"))
            if now - started >= deadlines.total:
                raise DeadlineExceeded(self._with_tail(f"still {text} after {now - started:.0f} s"))
            unchanged += 1
            self._pause(unchanged, LOOK)

    def _events(self, status: Mapping[str, Any]) -> str:
        """Return the last warnings of Kubernetes about the job and its pods, or how to look for them."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            answer = self.core.list_namespaced_event(
                self.request.namespace, field_selector="type=Warning", limit=500, _preload_content=False,
                _request_timeout=self.request.deadlines.request,
            )  # fmt: skip
            events = json.loads(answer.data).get("items") or []
        except (ApiException, HTTPError, OSError, ValueError):
            return f": kubectl -n {self.request.namespace} get events"
        # The pods' and the cluster's names begin with the job's, cut short.
        cluster = status.get("rayClusterName") or self.request.name
        ours = [event for event in events if _about(event).startswith((self.request.name, cluster[:40]))]
        ours.sort(key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
        said = dict.fromkeys(f"{event.get('reason')}: {' '.join(str(event.get('message')).split())}" for event in ours)
        return "".join(f"\n  event: {line[:300]}" for line in list(said)[-5:])

    def _with_tail(self, text: str) -> str:
        tail = "".join(f"\n  | {line}" for line in self.tail)
        return f"RayJob {self.request.name}: {text}" + (f"\nlast lines of its log:{tail}" if tail else "")

    def _follow_log(self, status: Mapping[str, Any]) -> bool:
        """Print what the log has that was not printed yet; return whether the head pod is there.

        A log that can't be read must not end a job that runs.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        head = ((status.get("rayClusterStatus") or {}).get("head") or {}).get("podName") or ""
        if not head:
            # Before the cluster is up; afterwards KubeRay has lost it.
            return not self._head
        if head != self._head:
            # A retry's new cluster has a log of its own.
            self._head, self._last_line, self._last_read = head, "", None
        now = self.clock.now()
        since = None if self._last_read is None else int(now - self._last_read) + 10
        try:
            answer = self.core.read_namespaced_pod_log(
                head, self.request.namespace, container=log_container(self.job), timestamps=True, tail_lines=1000,
                _preload_content=False, _request_timeout=self.request.deadlines.request,
                **({} if since is None else {"since_seconds": since}),
            )  # fmt: skip
            # Read here: the body can stop coming after the answer's first line.
            read = answer.data.decode("utf-8", "replace")
        except ApiException as error:
            if error.status in (401, 403):
                if not self._log_refused:
                    self._say(f"its log can't be read: not allowed to `get` pods/log ({error.status})")
                self._log_refused = True
            # 400: the container has not started.
            return error.status != 404
        except (HTTPError, OSError):
            return True
        self._last_read = now
        # A progress bar overwrites its line by carriage returns, at which `splitlines` would split too.
        for line in read.split("\n"):
            stamp, _, text = line.partition(" ")
            # Fixed width, so that text compares as time; the windows overlap.
            if _STAMP.fullmatch(stamp) and stamp > self._last_line:
                self._last_line = stamp
                text = text.rstrip("\r").rpartition("\r")[2]
                self.tail.append(text)
                print(f"  | {text}", flush=True)
        return True

    def _delete(self) -> None:
        """Delete the RayJob; KubeRay deletes its cluster. A failure is told and changes no outcome."""
        from kubernetes.client import ApiException

        if not self.ours:
            return
        try:
            self._request(
                "delete",
                lambda: self.objects.delete_namespaced_custom_object(
                    **self.where,
                    name=self.request.name,
                    propagation_policy="Background",
                    _request_timeout=self.request.deadlines.last_request,
                ),
                # Kubernetes kills this pod 30 s after it asked.
                seconds=20,
                passing=(404,),
            )
            self._say("deleted")
        except ApiException:
            self._say("is gone")
        except RayJobError as error:
            self._say(
                f"COULD NOT BE DELETED and may still hold GPUs: {error}\n"
                f"  kubectl -n {self.request.namespace} delete rayjob {self.request.name}"
            )


def _about(event: Mapping[str, Any]) -> str:
    return str((event.get("involvedObject") or {}).get("name") or "")


def _answer(error: Any) -> str:
    """What the API server says, without the headers."""
    body = error.body.decode("utf-8", "replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        return str((yaml.safe_load(body) or {})["message"])
    except (yaml.YAMLError, KeyError, TypeError):
        return f"{error.status} {error.reason}"


@contextmanager
def _told_to_end() -> Iterator[Callable[[], None]]:
    """Turn the first SIGTERM into `Interrupted`, and ignore more of them; restore the handler in the end.

    Yields a function after which no SIGTERM is heeded.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python allows signal handlers in the main thread alone.
        yield lambda: None
        return

    def deaf() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def end(number: int, frame: object) -> None:
        deaf()
        raise Interrupted("asked to end by SIGTERM")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield deaf
    finally:
        signal.signal(signal.SIGTERM, before)


def connect(host: str = "") -> Any:
    """Return an API client: of the pod's service account, else of the kubeconfig; `host` takes any server without both.

    Raises:
        UserError: there is neither.
    """
    from kubernetes import client, config

    configuration = client.Configuration()
    if host:
        configuration.host = host
    else:
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            try:
                config.load_kube_config(client_configuration=configuration)
            except config.ConfigException as error:
                raise UserError(f"no Kubernetes here: neither a service account nor a kubeconfig ({error}).") from error
    # Repeating is the launcher's, which knows deadlines.
    configuration.retries = False
    return client.ApiClient(configuration)


def submit(*, template: Path, request: JobRequest, host: str = "", refused: Callable[[], str] = str) -> None:
    """Run a RayJob to its end; see `Launcher`."""
    job = build(load_template(template), request)
    Launcher(connect(host), request, job, refused=refused).run()


def _pairs(words: Sequence[str]) -> dict[str, str]:
    pairs = dict(word.partition("=")[::2] for word in words)
    if not all(pairs) or len(pairs) < len(words):
        raise UserError(f"--node-selector {' '.join(words)}: expected KEY=VALUE.")
    return pairs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for what the user can mend, or the outcome's."""
    parser = argparse.ArgumentParser(prog="python -m amlp.cluster.rayjob", description="Run a command as a RayJob.")
    parser.add_argument("--template", type=Path, required=True, metavar="FILE", help="the RayJob to fill in")
    parser.add_argument("--run-id", required=True, help="the pipeline run's id")
    parser.add_argument("--task", required=True, help="the task's name in the pipeline")
    parser.add_argument("--image", required=True)
    parser.add_argument("--namespace", default="amlp")
    parser.add_argument("--owner", default="amlp", help="whom to ask about it; becomes a label")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0, help="of each worker")
    parser.add_argument("--node-selector", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--queue", default="", help="of Kueue")
    parser.add_argument("--deadline", type=float, default=Deadlines.total, metavar="SECONDS")
    parser.add_argument("--pre-running-deadline", type=float, default=Deadlines.pre_running, metavar="SECONDS")
    parser.add_argument("--host", default="", help="of the API server, without credentials (default: as kubectl)")
    parser.add_argument("entrypoint", nargs="+", metavar="-- COMMAND", help="what Ray runs")
    args = parser.parse_args(argv)
    try:
        request = JobRequest(
            run_id=args.run_id, task=args.task, entrypoint=args.entrypoint, image=args.image,
            namespace=args.namespace, owner=args.owner, workers=args.workers, gpus=args.gpus,
            node_selector=_pairs(args.node_selector), queue=args.queue,
            deadlines=Deadlines(total=args.deadline, pre_running=args.pre_running_deadline),
        )  # fmt: skip
        submit(template=args.template, request=request, host=args.host)
    except UserError as error:
        print(f"amlp: {error}", file=sys.stderr)
        return 2
    except RayJobError as error:
        print(f"amlp: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
