"""What stands for people, files and folders in all that we write, so that nobody is identified by it.

A patient's id becomes a keyed hash: without the key nobody can try ids until one fits. A case is named by a digest of
its image. Only where `ingest.case_ids` is `name`, for published images, do names of files go into ids.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from amlp.errors import UserError
from amlp.files import atomic_file

# The key as an environment variable, for pods; else a file that is made when it is first needed.
KEY = "AMLP_PSEUDONYM_KEY"
KEY_FILE = Path(".amlp/pseudonym-key")
_SHORTEST_KEY = 32
_DIGITS = 16
# A file system takes 255 bytes, and folders and suffixes need some of them.
_LONGEST = 100


class Pseudonyms:
    """What stands for a patient: with one key the same for the same id, and nothing to find the id by."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of_project(cls, folder: Path) -> Pseudonyms:
        """Take the key of the environment, or of a project's folder, where it is made at the first use.

        Raises:
            UserError: the key is too short to be one.
        """
        text, where = os.environ.get(KEY, ""), KEY
        if not text:
            where = str(file := folder / KEY_FILE)
            if not file.is_file():
                with atomic_file(file) as temporary:
                    temporary.touch(mode=0o600)
                    temporary.write_text(secrets.token_hex(32) + "\n", encoding="utf-8")
            text = file.read_text(encoding="utf-8").strip()
        return cls(_checked(text, where))

    @classmethod
    def of_environment(cls) -> Pseudonyms:
        """Take the key of the environment; without one, one that nobody will know: each run has pseudonyms of its own.

        Raises:
            UserError: the key is too short to be one.
        """
        return cls(_checked(os.environ.get(KEY) or secrets.token_hex(32), KEY))

    def __call__(self, patient: str) -> str:
        """Return 16 hexadecimal digits."""
        message = patient.encode("utf-8", "surrogateescape")
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:_DIGITS]


def _checked(text: str, where: str) -> bytes:
    if len(text) < _SHORTEST_KEY:
        raise UserError(f"{where}: holds {len(text)} characters, expected a random key of at least {_SHORTEST_KEY}.")
    return text.encode()


class Ids:
    """Ids of cases, each given once.

    Args:
        kind: `content` or `name`, see `ingest.case_ids`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._taken: dict[str, int] = {}

    def new(self, name: str, sha256: str) -> str | None:
        """Return a case's id; None where its name gives an id that another case has.

        Args:
            name: of the case in its source.
            sha256: of its image; a second case with the same image becomes `...-2`.
        """
        case_id = name_id(name) if self.kind == "name" else sha256[:_DIGITS]
        # Without regard to case, because there are file systems on which a.png and A.png are one file.
        times = self._taken[case_id.lower()] = self._taken.get(case_id.lower(), 0) + 1
        if times == 1:
            return case_id
        return None if self.kind == "name" else f"{case_id}-{times}"


def name_id(name: str) -> str:
    """`benign (433)` becomes `benign_433`; what is left of a long name gets a digest of all of it."""
    text = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    if not text:
        return digest[:_DIGITS]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}-{digest[:8]}"


def shown(name: str, case_ids: str) -> str:
    """Return how a source file may be named in what we write: names identify people, unless they are ids already."""
    if case_ids == "content":
        return "file-" + hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
