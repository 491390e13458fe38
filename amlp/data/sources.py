"""Where cases come from: each source lists jobs, and a job loads its cases whenever a worker gets to it.

A source is a function in `SOURCES`, (params, seed) -> `Listing`. It looks at names only; what is wrong with a file's
content comes out when its job runs. Nothing after ingest knows a source's layout.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amlp.data.images import read_image, read_mask
from amlp.data.phantom import render_patient
from amlp.errors import UserError
from amlp.files import sha256
from amlp.params import IngestParams

# Class folder whose images need no mask.
UNLABELLED = "unlabelled"
OTHER_PICTURES = {".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".dcm", ".nii"}
PATIENTS = "patients.csv"
# Stem of a mask file.
_MASK = re.compile(r"(?P<image>.+)_mask(_\d+)?", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """A source file (relative to the source, posix) that can't be used, and why.

    The reason doesn't repeat names: with `case_ids: hash` it is written where the name may not be.
    """

    file: str
    reason: str


@dataclass(frozen=True)
class Case:
    """One image as its source has it.

    image: (H, W) or (H, W, 3), uint8 or uint16. mask: (H, W) bool, or None when unlabelled. patient: a pseudonym or
    None. sha256: of the image file's bytes, or of the pixels where there is no file.
    """

    case_id: str
    label: str
    patient: str | None
    image: NDArray[np.uint8] | NDArray[np.uint16]
    mask: NDArray[np.bool_] | None
    sha256: str


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
    """What a source holds. `files` is what the share of problems counts against; `ignored` files were passed over."""

    files: int = 0
    jobs: list[Job] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def pseudonym(patient: str) -> str:
    """Return what stands for a patient in all that we write: the same for the same id, and not the id."""
    return hashlib.sha256(patient.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _hash_id(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def shown(name: str, case_ids: str) -> str:
    """Return how a source file may be named in what we write: with `hash`, names identify people."""
    if case_ids == "hash":
        return _hash_id(name)
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _load_patient(params: IngestParams, seed: int, patient: int) -> Loaded:
    cases = []
    for case in render_patient(params=params.phantom, seed=seed, patient=patient):
        case_id = _hash_id(case.case_id) if params.case_ids == "hash" else case.case_id
        digest = hashlib.sha256(case.image.tobytes()).hexdigest()
        cases.append(Case(case_id, case.label, pseudonym(case.patient), case.image, case.mask, digest))
    return Loaded(cases, [])


def list_phantom(params: IngestParams, seed: int) -> Listing:
    """Generated pictures, see amlp/data/phantom.py; a job is a patient."""
    phantom = params.phantom
    jobs = [
        Job(phantom.images_per_patient, partial(_load_patient, params, seed, patient))
        for patient in range(phantom.patients)
    ]
    return Listing(files=phantom.patients * phantom.images_per_patient, jobs=jobs)


def _load_files(root: Path, image: str, masks: list[str], case_id: str, label: str, patient: str | None) -> Loaded:
    problems: list[Problem] = []

    def attempt(read: Callable[[Path], NDArray[Any]], name: str) -> NDArray[Any] | None:
        path = root / name
        try:
            return read(path)
        except UserError as error:
            problems.append(Problem(name, str(error).removeprefix(f"{path}: ")))
            return None

    pixels = attempt(read_image, image)
    lesion: NDArray[np.bool_] | None = None
    for name in masks:
        part = attempt(read_mask, name)
        if part is None or pixels is None:
            continue
        if part.shape != pixels.shape[:2]:
            (height, width), (mask_height, mask_width) = pixels.shape[:2], part.shape
            reason = f"the mask is {mask_width} x {mask_height}, its image {width} x {height}; they must agree."
            problems.append(Problem(name, reason))
        else:
            lesion = part if lesion is None else lesion | part
    if problems or pixels is None:
        return Loaded([], problems)
    return Loaded([Case(case_id, label, patient, pixels, lesion, sha256(root / image))], [])


def _walk(root: Path, listing: Listing) -> Iterator[tuple[str, list[str]]]:
    """Yield each class folder with its PNG files' names; what isn't one goes to the listing."""
    inside = root.resolve()

    def leaves(path: Path) -> bool:
        try:
            if not path.is_symlink() or path.resolve().is_relative_to(inside):
                return False
        except (OSError, RuntimeError):  # Links in a circle.
            pass
        listing.files += 1
        reason = "the link leads out of the source folder or nowhere; put a copy in its place."
        listing.problems.append(Problem(path.relative_to(root).as_posix(), reason))
        return True

    for folder in sorted(root.iterdir()):
        if leaves(folder):
            continue
        if folder.suffix.lower() in {".png", *OTHER_PICTURES} and folder.is_file():
            listing.files += 1
            listing.problems.append(Problem(folder.name, "a picture outside the class folders; put it into one."))
            continue
        if folder.name.startswith(".") or not folder.is_dir():
            if folder.name != PATIENTS:
                listing.ignored.append(folder.name)
            continue
        names = []
        for path in sorted(folder.iterdir()):
            if leaves(path):
                continue
            if path.suffix.lower() in OTHER_PICTURES and not path.name.startswith("."):
                # Ignored, it would be missing from the data without anybody noticing.
                listing.files += 1
                reason = "this layout holds PNG files; convert it to PNG."
                listing.problems.append(Problem(f"{folder.name}/{path.name}", reason))
            elif path.is_dir() and not path.name.startswith("."):
                listing.files += 1
                reason = "a folder inside a class folder is not looked into; put its images into the class folder."
                listing.problems.append(Problem(f"{folder.name}/{path.name}", reason))
            elif path.name.startswith(".") or path.suffix.lower() != ".png":
                listing.ignored.append(f"{folder.name}/{path.name}")
            else:
                names.append(path.name)
        listing.files += len(names)
        yield folder.name, names


def _patients(root: Path, images: set[str], listing: Listing) -> dict[str, str]:
    """Read patients.csv, if there is one: the pseudonym of each image whose patient it names."""
    path = root / PATIENTS
    if not path.is_file() or path in {root / problem.file for problem in listing.problems}:
        return {}
    listing.files += 1
    patients: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"file", "patient"} <= set(reader.fieldnames or ()):
                # What stands there instead is not repeated: it may be a patient's name.
                listing.problems.append(Problem(PATIENTS, "line 1: expected the columns file and patient."))
                return {}
            for row in reader:
                name, patient = (row["file"] or "").strip(), (row["patient"] or "").strip()
                where = f"line {reader.line_num}: "
                if name not in images:
                    # No path is opened by what this file says: it only labels images that the folder holds.
                    reason = f"{where}no such image; expected a path like 'benign/benign (1).png'."
                    listing.problems.append(Problem(PATIENTS, reason))
                elif patient and patients.setdefault(name, pseudonym(patient)) != pseudonym(patient):
                    listing.problems.append(Problem(PATIENTS, f"{where}another patient for an image named before."))
    except (UnicodeDecodeError, csv.Error) as error:
        listing.problems.append(Problem(PATIENTS, f"no CSV file in UTF-8 ({error})."))
    return patients


def _name_id(label: str, stem: str) -> str:
    """`benign/benign (433)` becomes `benign_433`, `malignant/scan 7` becomes `malignant_scan_7`."""
    text = stem if stem.startswith(label) else f"{label}_{stem}"
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_") or _hash_id(f"{label}/{stem}")


def list_busi(params: IngestParams, seed: int) -> Listing:
    """Images and masks in class folders as BUSI is published; `patients.csv` (file,patient) may name patients.

    Source: doi:10.1016/j.dib.2019.104863.

    Raises:
        UserError: the folder is missing or holds no image.
    """
    root = Path(params.path)
    layout = "<label>/<name>.png with <name>_mask.png beside it"
    if not root.is_dir():
        state = "is no folder" if root.exists() else "not found"
        raise UserError(f"ingest.path: {root}: {state}. Expected a folder with {layout}.")
    listing = Listing()
    images: set[str] = set()
    found: list[tuple[str, str, list[str]]] = []
    for label, names in _walk(root, listing):
        masks: dict[str, list[str]] = {}
        for name in names:
            if match := _MASK.fullmatch(Path(name).stem):
                masks.setdefault(match["image"], []).append(name)
        not_images = {name for group in masks.values() for name in group}
        for name in names:
            if name in not_images:
                continue
            images.add(f"{label}/{name}")
            of_image = masks.pop(Path(name).stem, [])
            if of_image or label == UNLABELLED:
                found.append((label, name, of_image))
            else:
                reason = f"no mask; expected <name>_mask.png beside it, or the image in the folder '{UNLABELLED}'."
                listing.problems.append(Problem(f"{label}/{name}", reason))
        for group in masks.values():
            reason = "the mask has no image; expected <name>.png beside <name>_mask.png."
            listing.problems += [Problem(f"{label}/{name}", reason) for name in group]
    if not found and not listing.problems:
        raise UserError(f"ingest.path: {root}: holds no image. Expected {layout}.")

    patients = _patients(root, images, listing)
    taken: dict[str, str] = {}
    for label, name, masks_of_image in found:
        image = f"{label}/{name}"
        case_id = _hash_id(image) if params.case_ids == "hash" else _name_id(label, Path(name).stem)
        # Without regard to case, because there are file systems on which a.png and A.png are one file.
        first = taken.setdefault(case_id.lower(), image)
        if first != image:
            reason = f"its case id '{case_id}' is that of '{first}' already; rename one, or set ingest.case_ids: hash."
            listing.problems.append(Problem(image, reason))
            continue
        mask_files = [f"{label}/{mask}" for mask in masks_of_image]
        load = partial(_load_files, root, image, mask_files, case_id, label, patients.get(image))
        listing.jobs.append(Job(1, load))
    return listing


SOURCES: dict[str, Callable[[IngestParams, int], Listing]] = {"phantom": list_phantom, "busi": list_busi}
