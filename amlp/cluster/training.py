"""Where a training stage of a pipeline runs: in the task's own pod, or on a Ray cluster that the task launches."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from amlp.cluster.rayjob.request import Deadlines, JobRequest
from amlp.environment import PIPELINE_RUN, POD_NAME, POD_UID, STATE
from amlp.errors import UserError
from amlp.params import Count, Params, PositiveFloat, Section
from amlp.storage import check_storage

# The variable that holds `ClusterParams` as JSON in a pipeline's training tasks.
SETTINGS = "AMLP_CLUSTER"
# Where a pod finds the namespace that it is in.
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def _text(value: object) -> object:
    """YAML's `cpu: 2` means what `cpu: "2"` does, for Kubernetes too."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


# As Kubernetes writes cores and bytes.
_MORE_THAN_0 = r"([1-9][0-9]*(\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*)"
Cpu = Annotated[str, Field(pattern=rf"^({_MORE_THAN_0}|[1-9][0-9]*m)$"), BeforeValidator(_text)]
Memory = Annotated[str, Field(pattern=rf"^{_MORE_THAN_0}([KMGT]i|[kMGT])$")]
# A label's name, with a domain before it or without.
LabelName = Annotated[
    str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
]
# From a minute to a year.
Hours = Annotated[PositiveFloat, Field(ge=1 / 60, le=8760)]


class Asked(Section):
    """Cores and memory that a pod asks for; empty for what the template says."""

    cpu: Cpu | Literal[""] = ""
    memory: Memory | Literal[""] = ""


class ClusterParams(Section):
    """Where trainings run, and on what: the same for all of a pipeline, and nothing that changes their result."""

    # `pod`: in the task's pod; `rayjob`: on a Ray cluster that exists as long as the training.
    launcher: Literal["pod", "rayjob"] = "pod"
    # s3://bucket/prefix for checkpoints, and what a Ray cluster reads and writes; empty keeps checkpoints in the pod.
    work: Annotated[str, Field(pattern=r"^(s3://[^/]+(/.*)?)?$")] = ""
    # What a training's pod asks for.
    cpu: Cpu = "4"
    memory: Memory = "24Gi"
    # For `rayjob`; what the head and each worker ask for is the template's where it is empty.
    head: Asked = Asked()
    worker: Asked = Asked()
    image: str = ""
    template: str = "/etc/amlp/rayjob.yaml"
    owner: str = "amlp"
    queue: str = ""
    # Of each worker of a Ray cluster, or of a training's pod.
    gpus: Count = 0
    node_selector: dict[LabelName, str] = Field(default_factory=dict)
    tolerations: list[dict[str, Any]] = Field(default_factory=list)
    # Of one try; a task that is tried again has as long again.
    deadline_hours: Hours = Deadlines.total / 3600
    start_minutes: PositiveFloat = Deadlines.pre_running / 60

    @model_validator(mode="after")
    def _whole(self) -> ClusterParams:
        if self.launcher == "rayjob" and not (self.work and self.image):
            raise ValueError("launcher rayjob needs `work`, where Ray's nodes find their files, and `image`")
        if self.launcher == "rayjob" and self.gpus > 1:
            raise ValueError(f"gpus: {self.gpus}: a Ray worker trains on one GPU; give 1, and more workers")
        if found := re.search(r"\{\{.{0,40}", self.model_dump_json()):
            raise ValueError(f"{found.group()!r}: Kubeflow replaces what follows two braces; write it without")
        return self


def run_training(
    *,
    stage: str,
    params: Params,
    shards: Path,
    encoder: Path | None,
    out: Path,
    cluster: ClusterParams,
) -> None:
    """Run stage `pretrain`, `finetune` or `scratch` where `cluster` says.

    Args:
        stage: `finetune` takes an encoder, the others none.
        params: of the run.
        shards: what preprocess wrote.
        encoder: what pretrain wrote.
        out: folder to write.
        cluster: where, and on what.

    Raises:
        UserError: bad parameters or inputs, storage that fails, or GPUs that PyTorch does not see.
        RayJobError: the RayJob did not succeed.
    """
    if cluster.launcher == "rayjob":
        _run_as_rayjob(stage=stage, params=params, shards=shards, encoder=encoder, out=out, cluster=cluster)
        return
    if cluster.gpus:
        import torch

        # Else it would train on the CPU, a hundred times longer, and hold the GPU.
        if (seen := torch.cuda.device_count()) < cluster.gpus:
            raise UserError(
                f"{stage}: the pod was given {cluster.gpus} GPU(s) and PyTorch sees {seen}; look at the node's driver "
                "and device plugin, and that the image's CUDA is not newer than the driver."
            )
    with tempfile.TemporaryDirectory() as temporary:
        state = f"{cluster.work}/state" if cluster.work else os.environ.get(STATE, temporary)
        # Before hours are spent on what could not be kept.
        check_storage(state)
        if stage == "pretrain":
            from amlp.training.pretrain import pretrain

            pretrain(params=params, shards=shards, out=out, state=state)
        else:
            from amlp.training.finetune import finetune

            finetune(params=params, shards=shards, encoder=encoder, out=out, state=state)


def _run_as_rayjob(
    *, stage: str, params: Params, shards: Path, encoder: Path | None, out: Path, cluster: ClusterParams
) -> None:
    from amlp.cluster.remote import run_as_rayjob

    run_id = os.environ.get(PIPELINE_RUN)
    if not run_id:
        raise UserError(f"{PIPELINE_RUN} is not set: the RayJob is named after the pipeline run.")
    request = JobRequest(
        run_id=run_id,
        task=stage,
        image=cluster.image,
        namespace=_NAMESPACE.read_text().strip() if _NAMESPACE.is_file() else "amlp",
        owner=cluster.owner,
        gpus=cluster.gpus,
        head={key: value for key, value in cluster.head if value},
        worker={key: value for key, value in cluster.worker if value},
        queue=cluster.queue,
        node_selector=cluster.node_selector,
        tolerations=cluster.tolerations,
        pod_name=os.environ.get(POD_NAME, ""),
        pod_uid=os.environ.get(POD_UID, ""),
        deadlines=Deadlines(total=cluster.deadline_hours * 3600, pre_running=cluster.start_minutes * 60),
    )
    run_as_rayjob(
        stage=stage, params=params, shards=shards, encoder=encoder, out=out, work=cluster.work,
        template=Path(cluster.template), request=request,
    )  # fmt: skip
