"""`amlp predict IN OUT`: masks, overlays and a table for a folder of pictures and volumes.

Memory doesn't grow with the folder: a picture is brought to the model's size as soon as it is read, and a mask to the
picture's size just before it is written.

What is finished is noted in OUT/.predict.jsonl, and the same command resumes from it after an interruption.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amlp import __version__
from amlp.errors import UserError
from amlp.files import write_json
from amlp.models.predictor import Predictor
from amlp.progress import progress
from amlp.registry.weights import Weights
from amlp.serving.batches import segment_all
from amlp.serving.journal import Journal
from amlp.serving.outputs import JOURNAL, MASKS, OVERLAYS, SUMMARY, TABLE, Writer, write_table
from amlp.serving.sources import list_sources

logger = logging.getLogger(__name__)
_SHOWN = 20


def predict_folder(
    *,
    weights: Weights,
    source: Path,
    out: Path,
    exclude: Sequence[str] = (),
    overlays: bool = True,
    force: bool = False,
) -> dict[str, Any]:
    """Segment a file, or all files of a folder and its subfolders.

    Writes masks/ (PNG 0 or 255 for pictures; NIfTI 0 or 1 with the volume's place in space), overlays/ (pictures with
    the outline), predictions.csv (a row an image, or a slice of a volume; `seconds` is the work on it) and
    summary.json. Masks are those of `Predictor.mask`, but for pixels whose probability is within rounding of 1/2, for
    the model runs on batches.

    Args:
        weights: the segmenter.
        source: file or folder.
        out: folder to write; it must be new, empty, or hold an unfinished run of the same.
        exclude: see `list_sources`.
        overlays: write these.
        force: write into a folder that holds other things, over files of the same names; nothing else is deleted.

    Returns:
        The content of summary.json; `bad_files` counts files that could not be read.

    Raises:
        UserError: there is nothing to segment, or `out` can't be used.
    """
    sources, others = list_sources(source, exclude=exclude)
    _check_apart(source, out)
    predictor = Predictor.load(weights.file)
    key = {
        "model_sha256": weights.sha256,
        "input": str(source.resolve()),
        "exclude": sorted(exclude),
        "overlays": overlays,
        "amlp": __version__,
    }
    with Journal.open(out, key, force=force) as journal:
        waiting = [one for one in sources if not journal.finished(one)]
        if len(waiting) < len(sources):
            logger.info(
                f"{out}: {len(sources) - len(waiting)} of {len(sources)} files are finished; predicting the rest"
            )
        writer = Writer(out)
        started, images = time.perf_counter(), 0
        with progress(len(sources), "predict", "files", done=len(sources) - len(waiting)) as bar:
            for one, rows in segment_all(predictor, waiting, writer, looks=overlays):
                journal.add(one, rows)
                images += sum(not row["error"] for row in rows)
                bar.update()
        seconds = time.perf_counter() - started
        rows = journal.rows(sources)

    bad = [row for row in rows if row["error"]]
    good = [row for row in rows if not row["error"]]
    summary = {
        "amlp": __version__,
        "model": weights.name,
        "model_sha256": weights.sha256,
        "input": str(source),
        "files": len(sources),
        "images": len(good),
        "images_with_lesion": sum(row["lesion"] == "yes" for row in good),
        "bad_files": len(bad),
        "files_passed_over": sum(others.values()),
        "passed_over_by_kind": others,
        "images_per_second": round(images / seconds, 3) if images else None,
    }
    write_table(out / TABLE, rows)
    write_json(out / SUMMARY, summary)
    (out / JOURNAL).unlink()
    _show(summary, bad, out)
    return summary


def _show(summary: Mapping[str, Any], bad: Sequence[Mapping[str, Any]], out: Path) -> None:
    for row in bad[:_SHOWN]:
        logger.warning(f"amlp: {row['file']}: {row['error']}")
    if len(bad) > _SHOWN:
        logger.warning(f"amlp: and {len(bad) - _SHOWN} more, see column error of {out / TABLE}")
    if others := summary["passed_over_by_kind"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.items())
        logger.warning(f"amlp: passed over {summary['files_passed_over']} files that are not read: {kinds}")
    rate = f", {summary['images_per_second']:.3g} images/s" if summary["images_per_second"] else ""
    logger.info(
        f"{summary['images']} images, {summary['images_with_lesion']} with a lesion; {summary['bad_files']} files "
        f"unreadable{rate}; model {summary['model']}\nwrote {out}: {MASKS}/, {TABLE}, {SUMMARY}"
    )


def _check_apart(source: Path, out: Path) -> None:
    """Refuse to write among the pictures, where masks would be the next run's pictures, or over them."""
    inner, outer = source.resolve(), out.resolve()
    folder = inner if source.is_dir() else inner.parent
    if outer.is_relative_to(folder) if source.is_dir() else outer == inner:
        raise UserError(f"{out}: lies in {source}; write to a folder outside of it.")
    if inner.is_relative_to(outer / MASKS) or inner.is_relative_to(outer / OVERLAYS):
        raise UserError(f"{source}: lies in {out}, and would be written over; write to another folder.")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, expected a folder or a new name.")
