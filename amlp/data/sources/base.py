"""What every source yields: a listing of jobs, each of which loads its cases when a worker gets to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amlp.params import IngestParams


@dataclass(frozen=True)
class Problem:
    """A source file (relative to the source, posix) that can't be used, and why.

    The reason repeats no name of a file or patient, because it is written where names may not be.
    """

    file: str
    reason: str


@dataclass(frozen=True)
class Case:
    """One image as its source has it.

    name: of the case in its source; `case_ids: name` makes the id from it. label: a class, or None. patient: a
    pseudonym or None. image: (H, W) or (H, W, C), uint8, uint16 or float32. mask: (H, W) bool, or None when
    unlabelled. sha256: of the image file's bytes, or of the pixels where there is no file. format: what the file is.
    file: its name.
    blurred: the mask's edges were grey. kept: further columns of the manifest, see `IngestParams.table`.
    """

    name: str
    label: str | None
    patient: str | None
    image: NDArray[Any]
    mask: NDArray[np.bool_] | None
    sha256: str
    format: str
    file: str = ""
    blurred: bool = False
    kept: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    cases: list[Case]
    problems: list[Problem]


@dataclass(frozen=True)
class Job:
    """A piece of work that needs no other: `size` images, loaded by `load()`."""

    size: int
    load: Callable[[], Loaded]


@dataclass
class Listing:
    """What a source holds. `files` is what the share of problems counts against; `ignored` files were passed over.

    notes: what somebody should know though it is no error, without names.
    """

    files: int = 0
    jobs: list[Job] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Request:
    """What a source is asked for. pseudonym: turns a patient's id into what stands for it in all that we write."""

    params: IngestParams
    seed: int
    pseudonym: Callable[[str], str]


Source = Callable[[Request], Listing]
