"""What a killed training goes on from: one file outside the outputs, which DVC deletes before it runs a stage."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import amlp
from amlp.errors import UserError
from amlp.files import sha256
from amlp.models.checkpoint import to_bytes
from amlp.storage import absolute, is_remote, read, remove, write


def run_digest(*parts: Any) -> str:
    """Name a training by all that determines its result: another setting or data set never resumes it."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def code_digest() -> str:
    """Hash the code that a training runs, so that changed code never goes on from the weights of the old."""
    root = Path(amlp.__file__).parent
    folders = [root / name for name in ("method", "models", "training")]
    read = [root / "data" / name for name in ("augment.py", "labels.py", "shards.py")]
    read.append(root / "metrics" / "lesion_patches.py")
    files = [*read, *(f for d in folders for f in d.glob("*.py"))]
    return run_digest(torch.__version__, *((path.name, sha256(path)) for path in sorted(files)))


def data_digest(shards: Path) -> str:
    """Hash the bytes that a training reads: everything in the shards folder but the test split."""
    files = [path for path in sorted(shards.iterdir()) if path.suffix in (".npy", ".json", ".parquet")]
    return run_digest(*((path.name, sha256(path)) for path in files if not path.name.startswith(("test-", "metrics"))))


class TrainingState:
    """The last checkpoint of one training.

    Args:
        place: a local folder, or `s3://bucket/prefix` that a new cluster goes on from.
    """

    def __init__(self, place: Path | str) -> None:
        self.place = absolute(place)
        self.file = f"{self.place}/last.pt"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the training for this process; in S3 nothing is held.

        A lease in S3 would outlive the node that was killed and keep its successor waiting. Two drivers at once do no
        harm but waste: the same training writes the same checkpoints, each whole, and a RayJob's name is taken once.

        Raises:
            UserError: another process runs it, such as one whose parent was killed.
        """
        if is_remote(self.place):
            yield
            return
        lock = Path(f"{self.place}.lock")
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

    def load(self) -> dict[str, Any] | None:
        """Return the last checkpoint, or None when there is none."""
        data = read(self.file)
        if data is None:
            return None
        value: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return value

    def finished(self, epochs: int) -> dict[str, Any]:
        """Return the last checkpoint of a training that ran to its end."""
        end = self.load()
        assert end is not None and end["epoch"] == epochs, f"{self.file}: the training ended before its last epoch"
        return end

    def save(self, value: dict[str, Any]) -> None:
        write(self.file, to_bytes(value))

    def discard(self) -> None:
        """Forget the training once its outputs are written."""
        remove(self.place)
