"""What a killed training resumes from: one file outside the outputs, which DVC deletes before it runs a stage."""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

import amlp
from amlp.files import sha256
from amlp.models.checkpoint import to_bytes
from amlp.storage import absolute, lock, read, remove, write


def run_digest(*parts: Any) -> str:
    """Name a training by all that determines its result: another setting or data set never resumes it."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def code_digest() -> str:
    """Hash the code that a training runs, so that changed code never resumes from the weights of the old."""
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
        uri: a local folder, or `s3://bucket/prefix` from which a new cluster resumes.
    """

    def __init__(self, uri: Path | str) -> None:
        self.uri = absolute(uri)
        self.file = f"{self.uri}/last.pt"

    def locked(self) -> AbstractContextManager[None]:
        """Hold the training for this process, see `amlp.storage.lock`.

        Raises:
            UserError: another process runs it, such as one whose parent was killed.
        """
        return lock(self.uri)

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
        remove(self.uri)
