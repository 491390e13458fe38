"""`amlp predict IN OUT`: masks, overlays and a table for a folder of pictures and volumes.

Each core has a batch of files of its own and does all of it: read, run the model, write. That is faster than one model
on all cores, whose threads wait for each other in each layer and for what reads and writes. Memory doesn't grow with
the folder: a picture is brought to the model's size as soon as it is read, and a mask to the picture's size just before
it is written.

What is finished is noted in OUT/.predict.jsonl, and the same command goes on from there when it was interrupted.
"""

from __future__ import annotations

import csv
import errno
import json
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from amlp import __version__
from amlp.data.images import read_image, to_uint8, write_png
from amlp.errors import UserError
from amlp.evaluation.overlays import PREDICTED_COLOUR
from amlp.files import atomic_file, write_json, write_text
from amlp.models.predictor import Prediction, Predictor
from amlp.progress import progress
from amlp.registry.weights import Weights
from amlp.serving.sources import Source, list_sources
from amlp.serving.volumes import read_volume, volume_bytes

logger = logging.getLogger(__name__)

MASKS, OVERLAYS, TABLE, SUMMARY, JOURNAL = "masks", "overlays", "predictions.csv", "summary.json", ".predict.jsonl"
COLUMNS = ("file", "slice", "width", "height", "lesion", "presence", "area_px", "area_fraction", "uncertainty",
           "seconds", "mask", "error")  # fmt: skip
BATCH = 16
# Overlays are to be looked at, and enlarged or native ones would take longer than all the rest.
OVERLAY_SIDE = 512
# Volumes that are read or written at a time, whatever the number of cores: each is up to a gigabyte then.
_VOLUMES = threading.BoundedSemaphore(4)
_SHOWN = 20
_HALF = re.compile(r"\..*\.\d+\.tmp(\.\w+)?", re.DOTALL)


@dataclass(frozen=True)
class _Work:
    """A file that was read: the model's inputs of its slices (one for a picture), and the seconds that it took.

    look: a picture for the overlay, uint8, small. header: of a volume, see `Volume`.
    """

    source: Source
    size: tuple[int, int]
    pixels: list[NDArray[np.uint8]]
    seconds: float
    look: NDArray[np.uint8] | None = None
    header: Any = None


@dataclass(frozen=True)
class _Failed:
    """A file that can't be read, and why."""

    source: Source
    reason: str


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
    with _Journal.open(out, key, force=force) as journal:
        waiting = [one for one in sources if not journal.finished(one)]
        if len(waiting) < len(sources):
            logger.info(f"{out}: {len(sources) - len(waiting)} of {len(sources)} files are finished; going on")
        writer = _Writer(out, overlays=overlays)
        started, images = time.perf_counter(), 0
        with progress(len(sources), "predict", "files", done=len(sources) - len(waiting)) as bar:
            for one, rows in _run(predictor, waiting, writer, looks=overlays):
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
        "files_passed_over": others,
        "images_per_second": round(images / seconds, 3) if images else None,
    }
    _write_table(out / TABLE, rows)
    write_json(out / SUMMARY, summary)
    (out / JOURNAL).unlink()
    _tell(summary, bad, out)
    return summary


def _write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    # Names of files need not be text.
    with (
        atomic_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as table,
    ):
        lines = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        lines.writeheader()
        lines.writerows(rows)


def _tell(summary: Mapping[str, Any], bad: Sequence[Mapping[str, Any]], out: Path) -> None:
    for row in bad[:_SHOWN]:
        logger.warning(f"amlp: {row['file']}: {row['error']}")
    if len(bad) > _SHOWN:
        logger.warning(f"amlp: and {len(bad) - _SHOWN} more, see column error of {out / TABLE}")
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


class _Journal:
    """A line a finished file, so that an interrupted run can go on. The first line says what the run is of."""

    def __init__(self, path: Path, file: TextIO, done: Mapping[str, list[int | str]]) -> None:
        self.path = path
        self._file = file
        self._done = done

    @classmethod
    @contextmanager
    def open(cls, out: Path, key: Mapping[str, Any], *, force: bool) -> Iterator[_Journal]:
        """Start a journal, or go on with one of the same `key`.

        Raises:
            UserError: `out` holds other things, and `force` is off.
        """
        path = out / JOURNAL
        found = None if force else _lines(path)
        if found and found[0] == dict(key):
            # A file that could not be read may have been mended.
            done = {line["file"]: line["stamp"] for line in found[1:] if not line["rows"][0]["error"]}
            lines = found
            _remove_halves(out)
        else:
            if not force and out.is_dir() and (held := sorted(one.name for one in out.iterdir())):
                what = "an unfinished run of other things" if found else ", ".join(held[:3])
                raise UserError(f"{out}: holds {what}; choose a new folder, or write into this one with --force.")
            try:
                out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{out}: can't be made ({error.strerror or error}); choose another folder.") from error
            for stale in (TABLE, SUMMARY):
                (out / stale).unlink(missing_ok=True)
            done, lines = {}, [dict(key)]
        # Whole lines alone, or the next one would go on where a broken one ends.
        write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))
        with path.open("a") as file:
            yield cls(path, file, done)

    def finished(self, source: Source) -> bool:
        return self._done.get(source.name) == _stamp(source)

    def add(self, source: Source, rows: Sequence[Mapping[str, Any]]) -> None:
        self._file.write(json.dumps({"file": source.name, "stamp": _stamp(source), "rows": rows}) + "\n")
        self._file.flush()

    def rows(self, sources: Iterable[Source]) -> list[dict[str, Any]]:
        """All rows of the sources, in their order."""
        rows = {line["file"]: line["rows"] for line in _lines(self.path)[1:]}
        return [row for source in sources for row in rows[source.name]]


def _remove_halves(out: Path) -> None:
    """Remove what `atomic_file` left when it was killed."""
    for kind in (MASKS, OVERLAYS):
        for path in (out / kind).rglob(".*"):
            if _HALF.fullmatch(path.name) and path.is_file():
                path.unlink()


def _lines(path: Path) -> list[Any]:
    """Whole lines of a journal; the last one may be cut off."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def _stamp(source: Source) -> list[int | str]:
    """What tells a file from one that was put in its place; zeros for one that is gone.

    With its mask's name, which another file may have taken over since, for it depends on the file's namesakes.
    """
    try:
        status = source.path.stat()
    except OSError:
        return [0, 0, source.mask]
    return [status.st_size, status.st_mtime_ns, source.mask]


def _run(
    predictor: Predictor, sources: Sequence[Source], writer: _Writer, *, looks: bool
) -> Iterator[tuple[Source, list[dict[str, Any]]]]:
    """Yield each source with its rows once its mask is written, in order."""
    groups = _groups(sources)
    cores = torch.get_num_threads()
    workers = max(1, min(cores, len(groups)))
    # Few files on many cores, one volume say: then the model may have several.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(cores // workers,))
    running: deque[Future[list[tuple[Source, list[dict[str, Any]]]]]] = deque()
    try:
        for group in groups:
            running.append(pool.submit(_segment, predictor, group, writer, looks=looks))
            if len(running) == 2 * workers:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        # Threads that start later would take the pool's number.
        torch.set_num_threads(cores)


def _groups(sources: Sequence[Source]) -> list[list[Source]]:
    """Pictures in batches, volumes, each of which is many slices, alone; in order."""
    groups: list[list[Source]] = []
    for source in sources:
        if source.volume or not groups or groups[-1][0].volume or len(groups[-1]) == BATCH:
            groups.append([])
        groups[-1].append(source)
    return groups


def _segment(
    predictor: Predictor, group: Sequence[Source], writer: _Writer, *, looks: bool
) -> list[tuple[Source, list[dict[str, Any]]]]:
    """Read the files of a group, run the model on them, write the masks."""
    loaded = [_load(predictor, source, looks=looks) for source in group]
    pixels = [plane for work in loaded if isinstance(work, _Work) for plane in work.pixels]
    started = time.perf_counter()
    answers: list[tuple[Tensor, Tensor]] = []
    for first in range(0, len(pixels), BATCH):
        logits, presence = predictor.logits(torch.from_numpy(np.stack(pixels[first : first + BATCH])))
        answers += zip(logits.split(1), presence.split(1), strict=True)
    seconds = (time.perf_counter() - started) / max(1, len(pixels))

    done, first = [], 0
    for work in loaded:
        if isinstance(work, _Failed):
            done.append((work.source, [_row(work.source, error=work.reason)]))
            continue
        own = answers[first : (first := first + len(work.pixels))]
        done.append((work.source, writer.write(work, own, work.seconds + seconds * len(own))))
    return done


def _load(predictor: Predictor, source: Source, *, looks: bool) -> _Work | _Failed:
    started = time.perf_counter()
    try:
        if source.volume:
            with _VOLUMES:
                volume = read_volume(source.path)
                pixels = [predictor.prepare(plane) for plane in volume.slices]
            _, height, width = volume.slices.shape
            return _Work(source, (height, width), pixels, time.perf_counter() - started, header=volume.header)
        image = to_uint8(read_image(source.path))
        look = _look(image) if looks else None
        size = (image.shape[0], image.shape[1])
        return _Work(source, size, [predictor.prepare(image)], time.perf_counter() - started, look=look)
    except UserError as error:
        return _Failed(source, str(error).removeprefix(f"{source.path}: "))


def _look(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shrink a picture for its overlay."""
    height, width = image.shape[:2]
    scale = min(1.0, OVERLAY_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # A copy: what shares memory with the picture would keep all of it.
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _row(source: Source, **values: Any) -> dict[str, Any]:
    return {**dict.fromkeys(COLUMNS, ""), "file": source.name, **values}


class _Writer:
    """Writes what a file's predictions are, under names that can't lead out of the folder."""

    def __init__(self, out: Path, *, overlays: bool) -> None:
        self.out = out.resolve()
        self.overlays = overlays

    def write(self, work: _Work, answers: Sequence[tuple[Tensor, Tensor]], seconds: float) -> list[dict[str, Any]]:
        """Write mask and overlay of the model's `answers`, which took `seconds`; returns the table's rows.

        Raises:
            UserError: they can't be written; what is wrong with one, a full disk, would be wrong with the others.
        """
        try:
            with _VOLUMES if work.header is not None else nullcontext():
                return self._write(work, answers, seconds)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                # A temporary name is longer than the file's own. This is of one file, so it stops nothing.
                return [_row(work.source, error="its name is too long to write a mask of that name; rename it.")]
            raise UserError(
                f"{self.out}: the mask of {work.source.name} can't be written ({error.strerror or error}); mend that, "
                "and the same command goes on."
            ) from error

    def _write(self, work: _Work, answers: Sequence[tuple[Tensor, Tensor]], seconds: float) -> list[dict[str, Any]]:
        started = time.perf_counter()
        predictions = (Predictor.finish(*answer, work.size) for answer in answers)
        target = self._target(MASKS, work.source.mask)
        if work.header is not None:
            rows = []
            masks = np.empty((len(answers), *work.size), np.uint8)
            for number, prediction in enumerate(predictions):
                masks[number] = prediction.mask
                rows.append(self._figures(work, prediction, slice=number))
            content = volume_bytes(masks, work.header, compress=work.source.name.lower().endswith(".gz"))
            with atomic_file(target) as temporary:
                temporary.write_bytes(content)
        else:
            [prediction] = predictions
            rows = [self._figures(work, prediction)]
            with atomic_file(target) as temporary:
                write_png(temporary, prediction.mask != 0)
            if work.look is not None:
                with atomic_file(self._target(OVERLAYS, work.source.mask)) as temporary:
                    _outlined(work.look, prediction.mask).save(temporary, format="PNG", compress_level=1)
        seconds += time.perf_counter() - started
        return [{**row, "seconds": round(seconds / len(rows), 5)} for row in rows]

    def _figures(self, work: _Work, prediction: Prediction, **values: Any) -> dict[str, Any]:
        height, width = work.size
        return _row(
            work.source,
            width=width,
            height=height,
            lesion="yes" if prediction.area else "no",
            presence=round(prediction.presence, 6),
            area_px=prediction.area,
            area_fraction=round(prediction.area / (height * width), 8),
            uncertainty=round(prediction.uncertainty, 6),
            mask=f"{MASKS}/{work.source.mask}",
            **values,
        )

    def _target(self, kind: str, name: str) -> Path:
        path = self.out / kind / name
        if not path.parent.resolve().is_relative_to(self.out):
            raise UserError(f"{path.parent}: a link that leads out of {self.out}; remove it.")
        return path


def _outlined(look: NDArray[np.uint8], mask: NDArray[np.uint8]) -> Image.Image:
    """Draw the edge of a mask, two pixels wide, into a picture (h, w) or (h, w, 3)."""
    height, width = look.shape[:2]
    area = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)) != 0
    padded = np.pad(area, 2, mode="edge")
    edge = area.copy()
    for rows, columns in ((0, 2), (4, 2), (2, 0), (2, 4)):
        area = area & padded[rows : rows + height, columns : columns + width]
    edge &= ~area
    if look.ndim == 3:
        return Image.fromarray(np.where(edge[..., None], np.array(PREDICTED_COLOUR, np.uint8), look))
    # Grey with one colour, for a third of the bytes, which take longer to compress than all the rest takes.
    picture = Image.fromarray(np.where(edge, np.uint8(255), np.minimum(look, 254)))
    picture.putpalette([*(level for grey in range(255) for level in (grey, grey, grey)), *PREDICTED_COLOUR])
    return picture
