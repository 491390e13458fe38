"""Stage `ingest`: read a source once, whole, into packed PNG files and a manifest with one row per case."""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amlp.data.images import png_bytes, to_grey, to_uint8
from amlp.data.packs import PackWriter
from amlp.data.sources import SOURCES, Case, Job, Listing, Problem, shown
from amlp.errors import ListedError
from amlp.files import atomic_dir, write_json
from amlp.layout import IngestFolder
from amlp.params import IngestParams
from amlp.progress import progress

logger = logging.getLogger(__name__)

# Jobs handed out at a time: what waits in memory stays small, however many there are.
WINDOW = 64
SHOWN_PROBLEMS = 50


@dataclass(frozen=True)
class Ingested:
    """Counts: cases in the manifest, per label, and problems that were tolerated."""

    cases: int
    labels: dict[str, int]
    problems: int


def perceptual_hashes(image: NDArray[np.uint8]) -> tuple[str, str]:
    """Return the 64-bit pHash of a grey picture (H, W) and of its mirror image, 16 hex digits each.

    Source: imagehash.phash (DCT of a 32 x 32 version, 8 x 8 lowest frequencies against their median).
    """
    import imagehash

    return str(imagehash.phash(Image.fromarray(image))), str(imagehash.phash(Image.fromarray(image[:, ::-1].copy())))


@dataclass(frozen=True)
class _Stored:
    """A case's row of the manifest, less the places of its files, and the files as PNG."""

    row: dict[str, Any]
    image: bytes
    mask: bytes | None


def _store(case: Case) -> _Stored:
    grey = to_uint8(case.image)
    phash, phash_mirror = perceptual_hashes(to_grey(grey) if grey.ndim == 3 else grey)
    row = {
        "case_id": case.case_id,
        "label": case.label,
        "patient": case.patient,
        "sha256": case.sha256,
        "phash": phash,
        "phash_mirror": phash_mirror,
        "height": case.image.shape[0],
        "width": case.image.shape[1],
        "channels": 1 if case.image.ndim == 2 else 3,
        "bits": 8 * case.image.dtype.itemsize,
        "lesion_fraction": float("nan") if case.mask is None else float(case.mask.mean()),
    }
    return _Stored(row, png_bytes(case.image), None if case.mask is None else png_bytes(case.mask))


def _packed(stored: _Stored, packs: PackWriter) -> dict[str, Any]:
    """Write a case's files; return its row of the manifest."""
    case_id = stored.row["case_id"]
    image = packs.add(f"images/{case_id}.png", stored.image)
    mask = None if stored.mask is None else packs.add(f"masks/{case_id}.png", stored.mask)
    return {**stored.row, "image": image, "mask": mask}


def _run(job: Job) -> tuple[list[_Stored], list[Problem]]:
    loaded = job.load()
    return [_store(case) for case in loaded.cases], loaded.problems


def _results(jobs: list[Job]) -> Iterator[tuple[list[_Stored], list[Problem]]]:
    """Run all jobs, a thread for each core; yield their results in the jobs' order."""
    # Threads, because the time goes into decoding, resizing and numpy, which leave the interpreter's lock alone, and
    # they start at once.
    with (
        progress(sum(job.size for job in jobs), "ingest", "images") as bar,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        for start in range(0, len(jobs), WINDOW):
            window = jobs[start : start + WINDOW]
            for job, result in zip(window, pool.map(_run, window), strict=True):
                yield result
                bar.update(job.size)


def _write_manifest(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # The types are stated: a column without any value would otherwise get none, and another type than usual.
    text = ("case_id", "image", "mask", "label", "patient", "sha256", "phash", "phash_mirror")
    schema = pa.schema(
        [(name, pa.string()) for name in text]
        + [(name, pa.int32()) for name in ("height", "width", "channels", "bits")]
        + [("lesion_fraction", pa.float64())]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _judge(listing: Listing, problems: list[Problem], cases: int, params: IngestParams) -> None:
    """Raise when more files have problems than tolerated, or when none is left; else report them."""
    lines = [f"{shown(problem.file, 'name')}: {problem.reason}" for problem in problems]
    bad = len({problem.file for problem in problems})
    share = bad / max(listing.files, 1)
    headline = f"{params.path}: {bad} of {listing.files} files can't be used ({share:.2%})"
    if share > params.tolerance or not cases:
        advice = f"Nothing was written. Repair or remove these files, or raise ingest.tolerance ({params.tolerance:g})."
        raise ListedError(headline, lines, advice)
    if lines:
        logger.warning(f"{headline}; left out, for ingest.tolerance is {params.tolerance:g}:")
        for line in lines[:SHOWN_PROBLEMS]:
            logger.warning(f"  - {line}".encode("ascii", "backslashreplace").decode())
        if len(lines) > SHOWN_PROBLEMS:
            logger.warning(f"  ... and {len(lines) - SHOWN_PROBLEMS} more, see problems.csv")


def ingest(*, params: IngestParams, seed: int, out: Path) -> Ingested:
    """Read the source and write `manifest.parquet`, `pixels-*.zip`, `problems.csv` and `summary.json` to `out`.

    The archives hold the images and masks as PNG; the manifest says where each is, see `amlp.data.packs`.

    All files are looked at before any problem is reported. Up to a share of `params.tolerance` of the files may have
    problems; their cases are left out and listed.

    Raises:
        UserError: the source is missing or empty.
        ListedError: more files can't be used than tolerated; it names all of them, and `out` stays as it was.
    """
    listing = SOURCES[params.source](params, seed)
    if listing.ignored:
        names = ", ".join(shown(name, params.case_ids) for name in listing.ignored[:5])
        more = ", ..." if len(listing.ignored) > 5 else ""
        logger.info(f"{params.path}: ignored {len(listing.ignored)} that are no .png in a class folder: {names}{more}")
    with atomic_dir(out) as folder:
        rows: list[dict[str, Any]] = []
        problems = list(listing.problems)
        with PackWriter(folder, "pixels") as packs:
            for cases, new_problems in _results(listing.jobs):
                rows += [_packed(case, packs) for case in cases]
                problems += new_problems
        rows.sort(key=lambda row: row["case_id"])
        problems.sort(key=lambda problem: (problem.file, problem.reason))
        _judge(listing, problems, len(rows), params)

        written = IngestFolder(folder)
        _write_manifest(rows, written.manifest)
        with written.problems.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["file", "reason"])
            writer.writerows([shown(problem.file, params.case_ids), problem.reason] for problem in problems)
        labels = dict(sorted(Counter(row["label"] for row in rows).items()))
        patients = {row["patient"] for row in rows} - {None}
        summary = {
            "source": params.source,
            "cases": len(rows),
            "labels": labels,
            "labelled": sum(row["mask"] is not None for row in rows),
            "with_lesion": sum(row["lesion_fraction"] > 0.0 for row in rows),
            "patients": len(patients),
            "without_patient": sum(row["patient"] is None for row in rows),
            "files": listing.files,
            "problems": len(problems),
            "ignored": len(listing.ignored),
        }
        write_json(written.summary, summary)
    counts = ", ".join(f"{count} {label}" for label, count in labels.items())
    logger.info(f"ingest: {len(rows)} cases ({counts}), {len(problems)} problem(s)")
    logger.info(f"wrote {out}: manifest.parquet, pixels-*.zip, problems.csv, summary.json")
    return Ingested(len(rows), labels, len(problems))
