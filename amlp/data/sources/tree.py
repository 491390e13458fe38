"""The files of a source's folder, by names relative to it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from amlp.data.pictures import read_bytes
from amlp.data.sources.base import Problem
from amlp.errors import UserError


@dataclass
class Tree:
    """names: of the files, posix, sorted. hidden: names that begin with a dot, which are passed over."""

    root: Path
    names: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            UserError: it can't be read, or is empty.
        """
        return read_bytes(self.root / name)

    def is_dicom(self, name: str) -> bool:
        """Whether a file without suffix is DICOM, which scanners write without one."""
        if "." in name.rpartition("/")[2]:
            return False
        try:
            with (self.root / name).open("rb") as file:
                return file.read(132)[128:] == b"DICM"
        except OSError:
            return False


def walk(root: Path, *, expected: str) -> Tree:
    """List a folder with its subfolders; what can't be looked at, and links that lead out, become problems.

    Args:
        root: the folder.
        expected: what it should hold, for errors.

    Raises:
        UserError: there is no such folder.
    """
    if not root.is_dir():
        state = "is no folder" if root.exists() else "not found"
        raise UserError(f"ingest.path: {root}: {state}. Expected a folder with {expected}.")
    tree = Tree(root)
    inside = root.resolve()

    def refuse(error: OSError) -> None:
        reason = f"can't be looked into ({error.strerror}); its files would be missing."
        tree.problems.append(Problem(Path(error.filename).relative_to(root).as_posix(), reason))

    for folder, folders, files in os.walk(root, onerror=refuse):
        here = Path(folder).relative_to(root)
        for name in sorted(folders):
            relative = (here / name).as_posix()
            if name.startswith("."):
                tree.hidden.append(relative)
            elif os.path.islink(os.path.join(folder, name)):
                reason = "a link to a folder is not followed; put the folder itself, or a copy, in its place."
                tree.problems.append(Problem(relative, reason))
            else:
                continue
            folders.remove(name)
        folders.sort()
        for name in sorted(files):
            relative = (here / name).as_posix()
            path = os.path.join(folder, name)
            if name.startswith("."):
                tree.hidden.append(relative)
            elif os.path.islink(path) and not _stays(path, inside):
                reason = "the link leads out of the source folder or nowhere; put a copy in its place."
                tree.problems.append(Problem(relative, reason))
            else:
                tree.names.append(relative)
    tree.names.sort()
    return tree


def _stays(link: str, inside: Path) -> bool:
    try:
        return Path(link).resolve(strict=True).is_relative_to(inside)
    except (OSError, RuntimeError):  # Links in a circle, or to nothing.
        return False
