"""What a killed training goes on from: one file outside the outputs, which DVC deletes before it runs a stage."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import amlp
from amlp.errors import UserError
from amlp.files import sha256
from amlp.models.checkpoint import save


def run_digest(*parts: Any) -> str:
    """Name a training by all that determines its result: another setting or data set never resumes it."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def code_digest() -> str:
    """Hash the code that a training runs, so that changed code never goes on from the weights of the old."""
    root = Path(amlp.__file__).parent
    folders = [root / name for name in ("method", "models", "training")]
    read = [root / "data" / name for name in ("augment.py", "labels.py", "shards.py")]
    files = [*read, *(f for d in folders for f in d.glob("*.py"))]
    return run_digest(torch.__version__, *((path.name, sha256(path)) for path in sorted(files)))


def data_digest(shards: Path) -> str:
    """Hash the bytes that a training reads: everything in the shards folder but the test split."""
    files = [path for path in sorted(shards.iterdir()) if path.suffix in (".npy", ".json", ".parquet")]
    return run_digest(*((path.name, sha256(path)) for path in files if not path.name.startswith(("test-", "metrics"))))


class TrainingState:
    """The last checkpoint of one training."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the training for this process.

        Raises:
            UserError: another process runs it, such as one whose parent was killed.
        """
        lock = self.folder.with_name(f"{self.folder.name}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{lock}: another process runs this very training; wait for it or end it, then run again."
                ) from error
            yield
            lock.unlink(missing_ok=True)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "last.pt"

    def load(self) -> dict[str, Any] | None:
        """Return the last checkpoint, or None when there is none."""
        return torch.load(self.file, map_location="cpu", weights_only=True) if self.file.is_file() else None

    def finished(self, epochs: int) -> dict[str, Any]:
        """Return the last checkpoint of a training that ran to its end."""
        end = self.load()
        assert end is not None and end["epoch"] == epochs, f"{self.file}: the training ended before its last epoch"
        return end

    def save(self, value: dict[str, Any]) -> None:
        save(self.file, value)

    def discard(self) -> None:
        """Forget the training once its outputs are written."""
        shutil.rmtree(self.folder, ignore_errors=True)
