"""Ray Train: the same training loop in this process or on many workers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from amlp import logs
from amlp.errors import UserError
from amlp.storage import absolute, remove

T = TypeVar("T", np.ndarray, Tensor)


def launch(loop: Callable[[dict[str, Any]], None], config: dict[str, Any], *, workers: int, folder: Path | str) -> None:
    """Run `loop(config)` under Ray Train and wait for it.

    Args:
        loop: an importable function; on each worker it may use `world()` and `torch.distributed`.
        config: plain values.
        workers: 0 runs in this process without a cluster; n starts n workers.
        folder: where Ray keeps its own records, local or in S3; must be shared by the workers.

    Raises:
        UserError: the batch can't be shared evenly by the workers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # A worker that died must not leave the others waiting for ever.
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "1800")
    import ray.train
    from ray.train.torch import TorchTrainer

    _hush()
    # Arrow reads an address in S3, and finds the server by AWS_ENDPOINT_URL_S3 as we do.
    parent, name = absolute(folder).rsplit("/", 1)
    trainer = TorchTrainer(
        loop,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=_use_gpu(workers),
            # Else workers without GPUs would share one node while others idle.
            placement_strategy="SPREAD",
        ),
        run_config=ray.train.RunConfig(name=name, storage_path=parent),
    )
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        # Ray wraps what a worker raised; a user's mistake is reported as without workers.
        for failure in error.worker_failures.values():
            cause = getattr(failure, "_base_exc", failure)
            if isinstance(cause, UserError):
                raise cause from error
        raise
    # Ray's own records of a run that ended well; what a resume needs is in the training state.
    remove(folder)


def _hush() -> None:
    """Keep Ray from logging each report; the progress bar shows the same."""
    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _use_gpu(workers: int) -> bool:
    """Whether each worker can have a GPU; asks the cluster, for its head, where this runs, often has none."""
    if workers == 0:
        return torch.cuda.is_available()
    return _cluster_gpus() >= workers


def _cluster_gpus() -> int:
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=True)
    return int(ray.cluster_resources().get("GPU", 0))


def check_gpus(count: int) -> None:
    """Check that the Ray cluster has as many GPUs as were asked for: else it would train without, for days.

    Raises:
        UserError: it has fewer.
    """
    if (found := _cluster_gpus()) < count:
        raise UserError(
            f"The Ray cluster has {found} GPUs, {count} were asked for; look at its workers' pods, the nodes' drivers "
            "and the device plugin."
        )


@dataclass(frozen=True)
class Worker:
    """This worker's place among all of them, and the collective operations that the loops need."""

    rank: int
    count: int
    device: torch.device

    def share(self, batch: T) -> T:
        """Cut this worker's part out of anything whose first axis is the global batch."""
        part = len(batch) // self.count
        return batch[self.rank * part : (self.rank + 1) * part]

    def wrap(self, model: nn.Module) -> nn.Module:
        """Average gradients over the workers."""
        if self.count == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices)

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the workers."""
        if self.count > 1:
            value = value.to(self.device).clone()
            dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the workers."""
        return self.sum(value) / self.count

    def report(self, metrics: dict[str, float]) -> None:
        """Report to Ray Train; a barrier, to be called on every worker."""
        import ray.train

        ray.train.report(metrics)


def this_worker() -> Worker:
    """Ask Ray Train where this code runs."""
    import ray.train
    import ray.train.torch

    _hush()
    if ray.is_initialized():
        # A process of Ray, which the command line did not configure.
        logs.configure()
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu" and ray.is_initialized() and ray.get_gpu_ids():
        raise UserError(
            f"Ray gave this worker GPU {ray.get_gpu_ids()} and PyTorch sees none; look at the node's driver, and that "
            "the image's CUDA is not newer than the driver."
        )
    return Worker(context.get_world_rank(), context.get_world_size(), device)


def check_shares(batch: int, workers: int, name: str) -> None:
    """Check that the workers can share the global batch evenly.

    Raises:
        UserError: the parts would differ, and with them the gradient.
    """
    if workers > 1 and batch % workers:
        raise UserError(f"{name}: {batch} images can't be shared evenly by {workers} workers; use a multiple of them.")
