"""What to run as a RayJob, and the RayJob that is made of it from a template."""

from __future__ import annotations

import copy
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from amlp.errors import UserError

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
GPU = "nvidia.com/gpu"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
RUN_LABEL, OWNER_LABEL, TASK_LABEL = "amlp/pipeline-run", "amlp/owner", "amlp/task"
# KubeRay appends to it for the cluster, the pods and the services, and a label holds 63 characters.
NAME_LIMIT = 47


@dataclass(frozen=True)
class Deadlines:
    """How long to wait for what, in seconds."""

    # From the start to the end, time in a queue included.
    total: float = 24 * 3600
    # From submission, a retry or the end of a suspension to the first step of the job.
    pre_running: float = 3600
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
        tolerations: taints that the workers tolerate, as Kubernetes writes them.
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


def job_name(run_id: str, task: str) -> str:
    """Name the RayJob of a task in a pipeline run: the same for the same, another for any other.

    At most 47 characters of a-z, 0-9 and -, starting with a letter, because services are named after it.
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
