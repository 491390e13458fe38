"""Stage `ingest`: read a source once, whole, into packed PNG files and a manifest with one row per case."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from amlp.data.packs import PackWriter
from amlp.data.pictures import encode, png_bytes
from amlp.data.privacy import Ids, Pseudonyms, shown
from amlp.data.sources.base import Case, Job, Listing, Problem, Request
from amlp.data.sources.kinds import SOURCES
from amlp.errors import ListedError, UserError
from amlp.files import atomic_dir, write_json
from amlp.layout import IngestFolder
from amlp.params import IngestParams
from amlp.progress import progress

logger = logging.getLogger(__name__)

# Jobs handed out at a time: what waits in memory stays small, however many there are.
WINDOW = 64
SHOWN_PROBLEMS = 50
# Labels beyond these counts, of fewer cases each than that, are looked at: they may be patients.
MANY_LABELS, FEW_LABELS, FEW_CASES = 50, 5, 50
_TAKEN = "its case id is that of another case already; rename one, or set ingest.case_ids: content."


@dataclass(frozen=True)
class Ingested:
    """Counts: cases in the manifest, per label, and problems that were tolerated."""

    cases: int
    labels: dict[str, int]
    problems: int


@dataclass(frozen=True)
class _Stored:
    """A case's row of the manifest, less its id and the places of its files, and the files; a suffix with the image."""

    name: str
    file: str
    row: dict[str, Any]
    image: tuple[str, bytes]
    mask: bytes | None


def _store(case: Case) -> _Stored:
    row = {
        "label": case.label,
        "patient": case.patient,
        "sha256": case.sha256,
        "height": case.image.shape[0],
        "width": case.image.shape[1],
        "channels": 1 if case.image.ndim == 2 else case.image.shape[2],
        "bits": 8 * case.image.dtype.itemsize,
        "format": case.format,
        "lesion_fraction": float("nan") if case.mask is None else float(case.mask.mean()),
        "blurred_mask": case.blurred,
        **case.kept,
    }
    return _Stored(case.name, case.file, row, encode(case.image), None if case.mask is None else png_bytes(case.mask))


def _packed(stored: _Stored, case_id: str, packs: PackWriter) -> dict[str, Any]:
    """Write a case's files; return its row of the manifest."""
    suffix, data = stored.image
    image = packs.add(f"images/{case_id}{suffix}", data)
    mask = None if stored.mask is None else packs.add(f"masks/{case_id}.png", stored.mask)
    return {"case_id": case_id, **stored.row, "image": image, "mask": mask}


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
    text = ["case_id", "image", "mask", "label", "patient", "sha256", "format"]
    numbers = ["height", "width", "channels", "bits"]
    own = {*text, *numbers, "lesion_fraction", "blurred_mask"}
    kept = sorted({name for row in rows for name in row} - own)
    schema = pa.schema(
        [(name, pa.string()) for name in text]
        + [(name, pa.int32()) for name in numbers]
        + [("lesion_fraction", pa.float64()), ("blurred_mask", pa.bool_())]
        + [(name, pa.string()) for name in kept]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _judge(listing: Listing, problems: list[Problem], cases: int, params: IngestParams, out: Path) -> None:
    """Raise when more files have problems than tolerated, or when none is left; else report them."""
    bad = len({problem.file for problem in problems})
    share = bad / max(listing.files, 1)
    headline = f"{params.path}: {bad} of {listing.files} files can't be used ({share:.2%})"
    if share > params.tolerance or not cases:
        advice = f"Nothing was written. Repair or remove these files, or raise ingest.tolerance ({params.tolerance:g})."
        if len(problems) > SHOWN_PROBLEMS:
            with atomic_dir(failed := out.with_name(f"{out.name}-failed")) as folder:
                _write_problems(problems, IngestFolder(folder).problems, "name")
            advice += f" All are in {IngestFolder(failed).problems}."
        raise ListedError(headline, summarised(problems), advice)
    if problems:
        logger.warning(f"{headline}; left out, for ingest.tolerance is {params.tolerance:g}:")
        for line in summarised(problems):
            logger.warning(f"  - {line}".encode("ascii", "backslashreplace").decode())


def summarised(problems: list[Problem]) -> list[str]:
    """Return a line for each problem; where there are many, one for those of a folder with the same reason."""
    lines = [f"{shown(problem.file, 'name')}: {problem.reason}" for problem in problems]
    if len(lines) <= SHOWN_PROBLEMS:
        return lines
    alike: dict[tuple[str, str, str], list[str]] = {}
    for problem in problems:
        path = PurePosixPath(problem.file)
        alike.setdefault((problem.reason, path.parent.as_posix(), path.suffix), []).append(problem.file)
    lines = []
    for (reason, _, _), files in alike.items():
        more = f" and {len(files) - 1} more like it" if len(files) > 1 else ""
        lines.append(f"{shown(files[0], 'name')}{more}: {reason}")
    rest = len(lines) - SHOWN_PROBLEMS
    return lines if rest <= 0 else [*lines[:SHOWN_PROBLEMS], f"... and {rest} more of other kinds"]


def _write_problems(problems: list[Problem], path: Path, case_ids: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "reason"])
        writer.writerows([shown(problem.file, case_ids), problem.reason] for problem in problems)


def check_labels(labels: Mapping[str | None, int], *, patients: int) -> None:
    """Refuse labels that look like patients, because they would be written everywhere, and nobody kept in one split.

    Args:
        labels: cases of each label.
        patients: that are known.

    Raises:
        UserError: there are many labels, or several with numbers in their names, of few cases each, and no patient.
    """
    names = [name for name in labels if name]
    numbered = sum(bool(re.search(r"[0-9]", name)) for name in names)
    few = np.median([labels[name] for name in names]) < FEW_CASES if names else False
    if len(names) > MANY_LABELS or (not patients and len(names) >= FEW_LABELS and few and numbered > 0.8 * len(names)):
        raise UserError(
            f"ingest: {len(names)} labels for {sum(labels.values())} cases, {numbered} of them with numbers in their "
            "names: they look like patients, not like classes. For a folder a patient set ingest.source: "
            "patient-folders, or write {patient} instead of {label} in ingest.pairs.image; if they are classes, set "
            "ingest.check_labels: false."
        )


def ingest(*, params: IngestParams, seed: int, out: Path, pseudonyms: Pseudonyms) -> Ingested:
    """Read the source and write `manifest.parquet`, `pixels-*.zip`, `problems.csv` and `summary.json` to `out`.

    The archives hold images (PNG, or NumPy's format where PNG can't hold the pixels) and masks (PNG); the manifest says
    where each is, see `amlp.data.packs`.

    All files are looked at before any problem is reported. Up to a share of `params.tolerance` of the files may have
    problems; their cases are left out and listed.

    Args:
        pseudonyms: what stands for patients in the manifest.

    Raises:
        UserError: the source is missing or empty, or its labels look like patients.
        ListedError: more files can't be used than tolerated; it names them, and `out` stays as it was.
    """
    listing = SOURCES[params.source](Request(params, seed, pseudonyms))
    if listing.ignored:
        names = ", ".join(shown(name, "name") for name in listing.ignored[:5])
        more = ", ..." if len(listing.ignored) > 5 else ""
        logger.info(f"{params.path}: ignored {len(listing.ignored)} that are no pictures: {names}{more}")
    for note in listing.notes:
        logger.warning(f"{params.path}: {note}")
    with atomic_dir(out) as folder:
        rows: list[dict[str, Any]] = []
        problems = list(listing.problems)
        ids = Ids(params.case_ids)
        with PackWriter(folder, "pixels") as packs:
            for cases, new_problems in _results(listing.jobs):
                for stored in cases:
                    case_id = stored.name if params.source == "phantom" else ids.new(stored.name, stored.row["sha256"])
                    if case_id:
                        rows.append(_packed(stored, case_id, packs))
                    else:
                        problems.append(Problem(stored.file, _TAKEN))
                problems += new_problems
        rows.sort(key=lambda row: row["case_id"])
        problems.sort(key=lambda problem: (problem.file, problem.reason))
        _judge(listing, problems, len(rows), params, out)
        counted = Counter(row["label"] for row in rows)
        patients = {row["patient"] for row in rows} - {None}
        if params.check_labels:
            check_labels(counted, patients=len(patients))

        written = IngestFolder(folder)
        _write_manifest(rows, written.manifest)
        _write_problems(problems, written.problems, params.case_ids)
        labels = {label: counted[label] for label in sorted(filter(None, counted))}
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
    if summary["labelled"] and not summary["with_lesion"]:
        logger.warning("warning: no mask shows a lesion, so masks teach nothing, and nothing can be scored")
    counts = f" ({', '.join(f'{count} {label}' for label, count in labels.items())})" if labels else ""
    logger.info(f"ingest: {len(rows)} cases{counts}, {len(problems)} problem(s)")
    logger.info(f"wrote {out}: manifest.parquet, pixels-*.zip, problems.csv, summary.json")
    return Ingested(len(rows), labels, len(problems))
