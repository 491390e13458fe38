"""Which images a step trains on: an endless stream of shuffled epochs, a function of the seed and the step alone."""

from __future__ import annotations

import math

import numpy as np
import torch

from amlp.data.augment import step_generator

_SHUFFLE = 1


class RowStream:
    """Batches of rows, every batch full; each row comes once in each pass over the data.

    Args:
        rows: (n,) rows of a shard split.
        batch: size of the global batch.
        seed: of the shuffles.
    """

    def __init__(self, rows: np.ndarray, *, batch: int, seed: int) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self.steps_per_epoch = math.ceil(len(rows) / batch)
        self._passes: dict[int, np.ndarray] = {}

    def _pass(self, number: int) -> np.ndarray:
        if number not in self._passes:
            # A batch spans few passes; older ones are not needed again.
            self._passes = {k: v for k, v in self._passes.items() if k >= number - 2}
            order = torch.randperm(len(self.rows), generator=step_generator(self.seed, number, _SHUFFLE))
            self._passes[number] = self.rows[order.numpy()]
        return self._passes[number]

    def __call__(self, step: int) -> np.ndarray:
        """Return the (batch,) rows of a step."""
        n, first = len(self.rows), step * self.batch
        position = np.arange(first, first + self.batch)
        passes = np.unique(position // n)
        table = np.concatenate([self._pass(int(number)) for number in passes])
        return table[position - passes[0] * n]
