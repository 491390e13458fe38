"""What a task's pod gets on a cluster; `kfp.local` ignores all of it.

The names are those of the objects in k8s/base; where one is missing, the pod starts without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kfp import dsl, kubernetes

from amlp.environment import IMAGE, PIPELINE_PAGES, PIPELINE_RUN, POD_NAME, POD_UID

# The images' user, for Pod Security `restricted`.
_USER = 10001
_SETTINGS = (
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "MLFLOW_TRACKING_URI",
    "AMLP_MLFLOW_PAGES",
    PIPELINE_PAGES,
)
_SECRETS = {
    "amlp-s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "amlp-mlflow-client": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
}


@dataclass(frozen=True)
class Pod:
    """What a task needs.

    Args:
        cpu: cores.
        memory: as Kubernetes writes it.
        hours: after which the pod is ended.
        retries: of a pod that failed; a training goes on from its last checkpoint.
    """

    cpu: str = "1"
    memory: str = "2Gi"
    hours: float = 1.0
    retries: int = 2


def place(task: dsl.PipelineTask, pod: Pod) -> dsl.PipelineTask:
    """Give a task its resources, limits, retries, settings and credentials."""
    task.set_cpu_request(pod.cpu).set_memory_request(pod.memory).set_memory_limit(pod.memory)
    # Kubernetes ends pods for reasons that a second try does not meet: a drained node, an image that did not come.
    task.set_retry(num_retries=pod.retries, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration="900s")
    kubernetes.set_timeout(task, seconds=int(pod.hours * 3600))
    kubernetes.set_security_context(task, run_as_user=_USER, run_as_group=_USER, run_as_non_root=True)
    kubernetes.use_config_map_as_env(task, "amlp-settings", {name: name for name in _SETTINGS}, optional=True)
    for secret, names in _SECRETS.items():
        kubernetes.use_secret_as_env(task, secret, {name: name for name in names}, optional=True)
    task.set_env_variable(IMAGE, task.container_spec.image)
    # By the pod's label and not as a parameter, which would make each run's tasks new to the cache.
    kubernetes.use_field_path_as_env(task, PIPELINE_RUN, "metadata.labels['pipeline/runid']")
    return task


def on_gpu(task: dsl.PipelineTask, *, gpus: Any, node_selector: Any, tolerations: Any) -> dsl.PipelineTask:
    """Let a task's pod have GPUs; all of it may be pipeline inputs.

    Args:
        task: of a training.
        gpus: how many; "0" for none.
        node_selector: dict of node labels.
        tolerations: list of taints that it bears, as Kubernetes writes them.
    """
    task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(gpus)
    kubernetes.add_node_selector_json(task, node_selector)
    kubernetes.add_toleration_json(task, tolerations)
    # The container's own 64 MiB kill PyTorch's loaders with a bus error.
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit="8Gi")
    return task


def launches(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Let a task launch a RayJob: from the template in the namespace, as the property of the task's pod."""
    kubernetes.use_config_map_as_volume(task, "amlp-rayjob", "/etc/amlp", optional=True)
    kubernetes.use_field_path_as_env(task, POD_NAME, "metadata.name")
    kubernetes.use_field_path_as_env(task, POD_UID, "metadata.uid")
    return task
