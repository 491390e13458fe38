"""What `amlp predict` finds in a folder, and what the masks will be called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from amlp.data.pictures import SUFFIXES
from amlp.errors import UserError

PICTURES = SUFFIXES
VOLUMES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Source:
    """A file to segment.

    name: relative to the folder, posix. mask: name of its mask in the folder of masks: the same; PNG for pictures.
    """

    path: Path
    name: str
    mask: str

    @property
    def volume(self) -> bool:
        """Whether it is a NIfTI volume, not a picture."""
        return self.name.lower().endswith(VOLUMES)


def list_sources(path: Path, *, exclude: Sequence[str] = ()) -> tuple[list[Source], dict[str, int]]:
    """Find pictures and volumes in a folder and its subfolders, or take one file.

    Hidden files and folders, and links to folders, are passed over.

    Args:
        path: folder or file.
        exclude: patterns as in a shell, of names relative to the folder; `*` stands for slashes too.

    Returns:
        The sources in order of their names, and how many files of each other kind there are, by suffix.

    Raises:
        UserError: there is nothing to segment, or two masks would have the same name.
    """
    if path.is_file():
        names, base = [path.name], path.parent
    elif path.is_dir():
        names, base = sorted(_walk(path)), path
    else:
        raise UserError(f"{path}: no such file or folder.")
    chosen = [name for name in names if name.lower().endswith(PICTURES + VOLUMES)]
    chosen = [name for name in chosen if not any(fnmatchcase(name, pattern) for pattern in exclude)]
    if not chosen:
        kinds = ", ".join(PICTURES + VOLUMES)
        raise UserError(f"{path}: no file to segment among {len(names)}; expected {kinds}, not all excluded.")
    sources = [Source(base / name, name, mask) for name, mask in zip(chosen, _mask_names(chosen), strict=True)]
    left = {*names} - {*chosen}
    others = Counter(_suffix(name) for name in left if not any(fnmatchcase(name, pattern) for pattern in exclude))
    return sources, dict(sorted(others.items()))


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower() or "without suffix"


def _walk(folder: Path) -> list[str]:
    found = []

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename}: can't be read ({error.strerror}); its pictures would be missing."
        ) from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return found


def _mask_names(names: Sequence[str]) -> list[str]:
    """The same names, with the suffix `.png` for pictures; `a.jpg.png` where `a.jpg` has a namesake."""
    short = [name if name.lower().endswith(VOLUMES) else str(PurePosixPath(name).with_suffix(".png")) for name in names]
    # Folded, for some file systems take names in capitals for the same.
    count = Counter(name.casefold() for name in short)
    # A folder's name is taken too: masks of a.jpg and a.png/b.png.
    count.update({str(folder).casefold() for name in names for folder in PurePosixPath(name).parents})
    masks = [
        mask if mask == name or count[mask.casefold()] == 1 else f"{name}.png"
        for name, mask in zip(names, short, strict=True)
    ]
    twice = [mask for mask, times in Counter(mask.casefold() for mask in masks).items() if times > 1]
    if twice:
        raise UserError(f"two files would get the same mask, {twice[0]}: rename one, or leave it out with --exclude.")
    return masks
