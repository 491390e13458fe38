"""Source `pairs`: images, and masks that patterns of their paths find; published layouts are presets of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amlp.data.pictures import SUFFIXES, Mask, Picture, decode, mask_of
from amlp.data.sources.base import Case, Job, Listing, Loaded, Problem, Request
from amlp.data.sources.patterns import Pattern
from amlp.data.sources.table import Row, Table, table_of
from amlp.data.sources.tree import Tree, walk
from amlp.errors import UserError
from amlp.params import PairsParams

# Label of images that `ingest.pairs.unlabelled` finds, where the pattern says nothing else.
UNLABELLED = "unlabelled"
# What a user may take for an image, or should: passed over, it would be missing without anybody noticing.
OTHER_IMAGES = (".gif", ".dcm", ".dicom", ".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".jp2", ".heic", ".svs")

PRESETS: Mapping[str, PairsParams] = {
    # doi:10.1016/j.dib.2019.104863
    "busi": PairsParams(
        image="{label}/{name}.png",
        mask="{label}/{name}_mask{:(_[0-9]+)?}.png",
        unlabelled=f"{UNLABELLED}/{{name}}.png",
    ),
    # A folder a patient, such as LGG's: TCGA_CS_4941/TCGA_CS_4941_12.tif and ..._12_mask.tif.
    "patient-folders": PairsParams(image="{patient}/{name}.*", mask="{patient}/{name}_mask.*", unlabelled=""),
}
Fields = Mapping[str, str]


@dataclass(frozen=True)
class _Layout:
    """The compiled patterns; `shared` are the fields by which a mask finds its image."""

    image: Pattern
    mask: Pattern | None
    unlabelled: Pattern | None
    shared: tuple[str, ...]

    @classmethod
    def of(cls, params: PairsParams) -> _Layout:
        image = Pattern(params.image, "ingest.pairs.image")
        mask = Pattern(params.mask, "ingest.pairs.mask") if params.mask else None
        unlabelled = Pattern(params.unlabelled, "ingest.pairs.unlabelled") if params.unlabelled else None
        shared = tuple(name for name in image.fields if mask and name in mask.fields)
        if mask and not shared:
            raise UserError(
                f"ingest.pairs.mask: {params.mask!r} shares no field with ingest.pairs.image {params.image!r}; "
                "write the same field, such as {name}, in both."
            )
        return cls(image, mask, unlabelled, shared)

    def fields(self, image: str) -> Fields | None:
        """Return what an image's path says, or None where it is no image's."""
        for pattern in (self.image, self.unlabelled):
            if pattern and (fields := pattern.match(image)) is not None:
                return fields
        return None

    def key(self, fields: Fields) -> tuple[str, ...]:
        return tuple(fields.get(name, "") for name in self.shared)

    def __str__(self) -> str:
        patterns = [f"images {self.image.text}"]
        patterns += [f"masks {self.mask.text}"] if self.mask else []
        patterns += [f"unlabelled images {self.unlabelled.text}"] if self.unlabelled else []
        return ", ".join(patterns)


def list_pairs(request: Request) -> Listing:
    """List the images of a folder with their masks.

    Raises:
        UserError: the folder or its table is missing, a pattern is none, or nothing fits.
    """
    params = request.params
    layout = _Layout.of(PRESETS.get(params.source, params.pairs))
    tree = walk(Path(params.path), expected=str(layout))
    listing = Listing(problems=list(tree.problems), ignored=list(tree.hidden))
    table = table_of(tree, params.table)
    images, masks = _sorted_out(tree, layout, listing, table)
    if not images and not listing.problems:
        raise UserError(f"ingest.path: {tree.root}: holds no image. Expected {layout}.")

    wanted = params.pairs.missing_mask == "error" and layout.mask is not None
    found: list[tuple[str, Fields, list[str]]] = []
    for name, fields in images.items():
        of_image = masks.pop(layout.key(fields), []) if layout.mask else []
        if of_image or not wanted or _fits(layout.unlabelled, name):
            found.append((name, fields, of_image))
        else:
            reason = (
                f"no mask; expected {layout.mask.text if layout.mask else ''}. For images without one set "
                "ingest.pairs.unlabelled, or ingest.pairs.missing_mask: unlabelled."
            )
            listing.problems.append(Problem(name, reason))
    for group in masks.values():
        reason = f"the mask has no image; expected {layout.image.text}."
        listing.problems += [Problem(name, reason) for name in group]
    listing.files = len(tree.names) + len(tree.problems) - len(set(listing.ignored) - set(tree.hidden))
    if table:
        listing.notes += table.check(list(images))
        listing.problems += table.problems
    for name, fields, of_image in found:
        row = (table.row(name) if table else None) or Row(0)
        patient = row.patient or fields.get("patient", "")
        case = _Identity(
            name=case_name(layout.image, name),
            label=row.label or fields.get("label") or (UNLABELLED if _fits(layout.unlabelled, name) else None),
            patient=request.pseudonym(patient) if patient else None,
            kept={**{field: fields[field] for field in ("site", "device") if fields.get(field)}, **row.kept},
        )
        load = partial(_load, tree, name, of_image, case, tuple(params.lesion_values))
        listing.jobs.append(Job(1, load))
    return listing


def _fits(pattern: Pattern | None, name: str) -> bool:
    return pattern is not None and pattern.match(name) is not None


def _sorted_out(
    tree: Tree, layout: _Layout, listing: Listing, table: Table | None
) -> tuple[dict[str, Fields], dict[tuple[str, ...], list[str]]]:
    """Separate images (with their fields) from masks (by the fields that they share with their image)."""
    images: dict[str, Fields] = {}
    masks: dict[tuple[str, ...], list[str]] = {}
    for name in tree.names:
        if layout.mask and (of_mask := layout.mask.match(name)) is not None:
            masks.setdefault(layout.key(of_mask), []).append(name)
        elif (fields := layout.fields(name)) is not None:
            images[name] = fields
        elif name.lower().endswith(SUFFIXES):
            listing.problems.append(Problem(name, f"fits none of the patterns: {layout}."))
        elif name.lower().endswith(OTHER_IMAGES) or tree.is_dicom(name):
            reason = f"this source reads {', '.join(SUFFIXES)}; convert it, or move it out of the folder."
            listing.problems.append(Problem(name, reason))
        elif table is None or name != table.params.file:
            listing.ignored.append(name)
    return images, masks


def case_name(pattern: Pattern, name: str) -> str:
    """Return what to call a case: the fields of its path, or the path; `benign/benign (433)` is `benign (433)`."""
    path = PurePosixPath(name)
    fields = pattern.match(name)
    parts = [text for text in fields.values() if text] if fields else [*path.parent.parts, path.stem]
    kept = [part for part, following in pairwise(parts) if not following.startswith(part)]
    return "_".join([*kept, *parts[-1:]])


@dataclass(frozen=True)
class _Identity:
    """What is known of a case before its files are read."""

    name: str
    label: str | None
    patient: str | None
    kept: Mapping[str, str]


def _load(tree: Tree, image: str, masks: list[str], case: _Identity, lesion_values: tuple[int, ...]) -> Loaded:
    problems: list[Problem] = []

    def attempt(name: str) -> tuple[Picture, bytes] | None:
        try:
            data = tree.read(name)
            return decode(data, tree.root / name), data
        except UserError as error:
            problems.append(Problem(name, _reason(error, tree.root / name)))
            return None

    read = attempt(image)
    lesion: NDArray[np.bool_] | None = None
    blurred = False
    for name in masks:
        mask = _mask(attempt(name), tree.root / name, problems, name, lesion_values)
        if mask is None or read is None:
            continue
        if reason := _other_size(mask.lesion, read[0].pixels):
            problems.append(Problem(name, reason))
            continue
        lesion = mask.lesion if lesion is None else lesion | mask.lesion
        blurred |= mask.blurred
    if problems or read is None:
        return Loaded([], problems)
    picture, data = read
    digest = hashlib.sha256(data).hexdigest()
    loaded = Case(
        name=case.name, label=case.label, patient=case.patient, image=picture.pixels, mask=lesion, sha256=digest,
        format=picture.format, file=image, blurred=blurred, kept=case.kept,
    )  # fmt: skip
    return Loaded([loaded], [])


def _mask(
    read: tuple[Picture, bytes] | None, path: Path, problems: list[Problem], name: str, lesion_values: tuple[int, ...]
) -> Mask | None:
    if read is None:
        return None
    try:
        if read[0].format == "JPEG" and path.suffix.lower() not in (".jpg", ".jpeg"):
            raise UserError(f"{path}: a JPEG by another name, which blurs a mask's edge; save the mask as PNG.")
        return mask_of(read[0], path, lesion_values)
    except UserError as error:
        problems.append(Problem(name, _reason(error, path)))
        return None


def _other_size(mask: NDArray[Any], image: NDArray[Any]) -> str:
    """Say how a mask's size differs from its image's, or nothing."""
    (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape[:2]
    if (height, width) == (mask_height, mask_width):
        return ""
    return f"the mask is {mask_width} x {mask_height}, its image {width} x {height}; they must agree."


def _reason(error: UserError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")
