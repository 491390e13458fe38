"""What a training used of the machine: a row an epoch, which the register stage hands to MLflow."""

from __future__ import annotations

import psutil
import torch


class Usage:
    """Samples this process."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        # psutil measures the CPU between two calls on the same object; this is the first of them.
        self.process.cpu_percent()

    def row(self, seconds: float) -> dict[str, float]:
        """Return `seconds` since the start, CPU since the last row (100 is one core) and memory in MiB."""
        row = {
            "seconds": round(seconds, 1),
            "cpu_percent": self.process.cpu_percent(),
            "memory_mb": round(self.process.memory_info().rss / 2**20, 1),
        }
        if torch.cuda.is_available():
            row["gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return row
