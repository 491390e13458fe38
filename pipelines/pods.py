"""What a task's pod gets on a cluster; `kfp.local` ignores all of it.

The names are those of the objects in k8s/base; where one is missing, the pod starts without it.
"""

from __future__ import annotations

from typing import Any

from kfp import dsl, kubernetes

from amlp.environment import IMAGE, PIPELINE_RUN, POD_NAME, POD_UID, RECORD, SETTINGS_FOLDER
from pipelines.resources import TaskResources

# The images' user, for Pod Security `restricted`.
_USER = 10001
# Mounted as files, which `components.runtime` reads into variables: one entry in a pod's description each, not one for
# each key, and Kubeflow's MLflow plugin may set the same variables without a conflict.
_SETTINGS, _SECRETS = "amlp-settings", ("amlp-s3", "amlp-mlflow-client")


# Of a pod that vanished; a training resumes from its last checkpoint.
_RETRIES = 2


def place(task: dsl.PipelineTask, pod: TaskResources, *, record: str = "") -> dsl.PipelineTask:
    """Give a task its resources, limits, retries, settings and credentials.

    Args:
        task: of the pipeline.
        pod: what it needs.
        record: where its error is recorded, see `amlp.environment.RECORD`; empty for nowhere.
    """
    task.set_cpu_request(pod.cpu).set_memory_request(pod.memory).set_memory_limit(pod.memory)
    # Under Kubeflow's own configuration, for pods that vanish alone: a drained node, a deleted pod. Argo also waits for
    # the first pause where no try follows. The maximum counts from the first start and is the last try's deadline, so
    # it covers all tries at their full length.
    seconds = int(pod.hours * 3600)
    longest = (_RETRIES + 1) * seconds + 3600
    task.set_retry(num_retries=_RETRIES, backoff_duration="5s", backoff_factor=2.0, backoff_max_duration=f"{longest}s")
    kubernetes.set_timeout(task, seconds=seconds)
    kubernetes.set_security_context(task, run_as_user=_USER, run_as_group=_USER, run_as_non_root=True)
    kubernetes.use_config_map_as_volume(task, _SETTINGS, f"{SETTINGS_FOLDER}/{_SETTINGS}", optional=True)
    for secret in _SECRETS:
        kubernetes.use_secret_as_volume(task, secret, f"{SETTINGS_FOLDER}/{secret}", optional=True)
    if record:
        task.set_env_variable(RECORD, record)
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
        tolerations: list of taints that it tolerates, as Kubernetes writes them.
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
