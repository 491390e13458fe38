"""What the trainings share: model, average, optimizer, resume, guarded step, history and checkpoint, in one object.

A loop reads:

    session = Session("pretrain", model, ...)         # resumes, when there is a checkpoint
    with session:
        for epoch in session.epochs:
            for step in session.steps(epoch):
                ...                                   # what this training is about, up to its loss
                session.step(step, loss)
            end = session.end(epoch)
            session.record(end, {...}, keep={...})
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic

import torch
from torch import Tensor

from amlp.params import FinetuneParams, PretrainParams
from amlp.progress import progress
from amlp.training.launch import Worker
from amlp.training.optim import M, WeightAverage, adamw, check_finite, finite_mean, guarded_step, learning_rate
from amlp.training.precision import autocast, resolve_precision
from amlp.training.state import TrainingState
from amlp.training.usage import Usage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epoch:
    """What the steps of one epoch gave, as means over the workers.

    Attributes:
        steps: numbers of the steps in the training.
        table: for each step the values that the loop handed over, the loss first, and the gradient's norm before
            clipping; not finite where the step was skipped.
        means: of the values by name, without skipped steps.
        grad_norm: mean of the norms, likewise.
        skipped: number of steps whose gradient was not finite.
        rate: learning rate of the last step.
    """

    number: int
    steps: range
    table: list[list[float]]
    means: dict[str, float]
    grad_norm: float
    skipped: int
    rate: float


class Session(Generic[M]):
    """One training on this worker.

    Args:
        title: of the progress bar.
        model: on the worker's device; starts as it is unless there is a checkpoint of this training.
        groups: of the optimizer, see `adamw`.
        settings: the section of the parameters with rates, precision, averaging and checkpoints.
        epochs: how many in all.
        steps_per_epoch: steps in each.
        betas: of AdamW.
        worker: this one.
        state: where the checkpoint is.
    """

    def __init__(
        self,
        title: str,
        model: M,
        groups: Sequence[Mapping[str, Any]],
        *,
        settings: PretrainParams | FinetuneParams,
        epochs: int,
        steps_per_epoch: int,
        betas: tuple[float, float],
        worker: Worker,
        state: TrainingState,
    ) -> None:
        self.model, self.settings, self.worker, self.state = model, settings, worker, state
        self.steps_per_epoch, self.total = steps_per_epoch, steps_per_epoch * epochs
        self.average = WeightAverage(model, settings.ema)
        self.optimizer = adamw(groups, weight_decay=settings.weight_decay, betas=betas)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.precision = resolve_precision(settings.precision, worker.device)
        self.history: list[dict[str, float]] = []
        self.system: list[dict[str, float]] = []
        self._usage = Usage()
        self._values: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._names: list[str] = []
        self._rate = 0.0
        # What `record` kept beside the session's own parts; empty at the start of a training.
        self.resumed: dict[str, Any] = state.load() or {}
        first, elapsed = 0, 0.0
        if self.resumed:
            first, elapsed = self.resumed["epoch"], self.resumed["seconds"]
            self._restore()
            if worker.rank == 0:
                logger.info(f"Resuming after epoch {first} of {epochs}.")
        self.epochs = range(first, epochs)
        # Gradients are averaged over the workers by this wrapper alone.
        self.trained = worker.wrap(model)
        self._started = time.monotonic() - elapsed
        hidden = worker.rank > 0 or not self.epochs
        self._bar = progress(self.total, title, "steps", done=first * steps_per_epoch, disable=hidden)

    def _restore(self) -> None:
        self.model.load_state_dict(self.resumed["model"])
        self.average.model.load_state_dict(self.resumed["average"])
        self.optimizer.load_state_dict(self.resumed["optimizer"])
        self.history, self.system = self.resumed["history"], self.resumed["system"]

    def __enter__(self) -> Session[M]:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def autocast(self) -> torch.autocast:
        """Context in which matrix products run in the precision that is set."""
        return autocast(self.worker.device, self.precision)

    def steps(self, epoch: int) -> Iterator[int]:
        """Yield the numbers of the epoch's steps; the loop calls `step` in each."""
        self.model.train()
        self._values, self._norms = [], []
        yield from self._numbers(epoch)

    def _numbers(self, epoch: int) -> range:
        return range(epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch)

    def step(self, step: int, loss: Tensor, **figures: Tensor) -> None:
        """Take one step of the optimizer, unless the gradient is not finite.

        Args:
            step: its number in the training.
            loss: scalar.
            figures: scalars to record beside it.
        """
        self._rate = learning_rate(step, self.total, peak=self.settings.lr, warmup=self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate * group["scale"]
        loss.backward()
        self._norms.append(guarded_step(self.optimizer, self.parameters, self.settings.clip_norm))
        self.average.update(self.model, step)
        self._names = ["loss", *figures]
        self._values.append(torch.stack([loss.detach(), *figures.values()]))
        self._bar.update()

    def end(self, epoch: int) -> Epoch:
        """Sum the epoch's steps up; a collective operation, to be called on every worker.

        Raises:
            UserError: the training diverged.
        """
        norms = torch.stack(self._norms)
        skipped = check_finite(norms, epoch=epoch + 1)
        values = self.worker.mean(torch.stack(self._values))
        return Epoch(
            number=epoch + 1,
            steps=self._numbers(epoch),
            table=[[*row, norm] for row, norm in zip(values.tolist(), norms.tolist(), strict=True)],
            means=dict(zip(self._names, finite_mean(values).tolist(), strict=True)),
            grad_norm=float(finite_mean(norms.unsqueeze(1))),
            skipped=skipped,
            rate=self._rate,
        )

    def record(self, end: Epoch, figures: Mapping[str, float], *, keep: Mapping[str, Any], shown: str = "lr") -> None:
        """Add the epoch to the history, and write a checkpoint when one is due; a barrier for all workers.

        Args:
            end: of this epoch.
            figures: for the history, beside the session's own.
            keep: what else a resume needs; `resumed` holds it then.
            shown: name of the figure that the progress bar shows beside the loss.
        """
        seconds = time.monotonic() - self._started
        row = {
            "epoch": end.number,
            "step": end.steps.stop,
            **end.means,
            "lr": end.rate,
            "grad_norm": end.grad_norm,
            "skipped": end.skipped,
            **figures,
            "seconds": round(seconds, 1),
        }
        self.history.append(row)
        self.system.append(self._usage.row(seconds))
        due = end.number % self.settings.checkpoint_epochs == 0 or end.number == self.epochs.stop
        if due and self.worker.rank == 0:
            own = {
                "epoch": end.number,
                "seconds": seconds,
                "model": self.model.state_dict(),
                "average": self.average.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "history": self.history,
                "system": self.system,
            }
            self.state.save({**own, **keep})
        self._bar.set_postfix({"loss": f"{row['loss']:.3f}", shown: f"{row[shown]:.3f}"}, refresh=False)
        self.worker.report(row)
