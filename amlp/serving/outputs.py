"""What `amlp predict` writes: a mask and an overlay for each file, and the table's rows."""

from __future__ import annotations

import csv
import errno
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from amlp.data.pictures import write_png
from amlp.errors import UserError
from amlp.evaluation.overlays import PREDICTED_COLOUR
from amlp.files import atomic_file
from amlp.models.predictor import Prediction, Predictor
from amlp.serving.sources import Source
from amlp.serving.volumes import volume_bytes

MASKS, OVERLAYS, TABLE, SUMMARY, JOURNAL = "masks", "overlays", "predictions.csv", "summary.json", ".predict.jsonl"
COLUMNS = ("file", "slice", "width", "height", "lesion", "presence", "area_px", "area_fraction", "uncertainty",
           "seconds", "mask", "error")  # fmt: skip
# Volumes that are read or written at a time, whatever the number of cores: each is up to a gigabyte then.
VOLUMES = threading.BoundedSemaphore(4)


@dataclass(frozen=True)
class Work:
    """A file that was read: the model's inputs of its slices (one for a picture), and the seconds that it took.

    look: a picture for the overlay, uint8, small. header: of a volume, see `Volume`.
    """

    source: Source
    size: tuple[int, int]
    pixels: list[NDArray[np.uint8]]
    seconds: float
    look: NDArray[np.uint8] | None = None
    header: Any = None


def new_row(source: Source, **values: Any) -> dict[str, Any]:
    """Return a row of the table; columns without a value are empty."""
    return {**dict.fromkeys(COLUMNS, ""), "file": source.name, **values}


class Writer:
    """Writes what a file's predictions are, under names that can't lead out of the folder."""

    def __init__(self, out: Path) -> None:
        self.out = out.resolve()

    def write(self, work: Work, answers: Sequence[tuple[Tensor, Tensor]], seconds: float) -> list[dict[str, Any]]:
        """Write mask and overlay of the model's `answers`, which took `seconds`; returns the table's rows.

        Raises:
            UserError: they can't be written; what is wrong with one, a full disk, would be wrong with the others.
        """
        try:
            with VOLUMES if work.header is not None else nullcontext():
                return self._write(work, answers, seconds)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                # A temporary name is longer than the file's own. This is of one file, so it stops nothing.
                return [new_row(work.source, error="its name is too long to write a mask of that name; rename it.")]
            raise UserError(
                f"{self.out}: the mask of {work.source.name} can't be written ({error.strerror or error}); correct "
                "that and run the same command again, it resumes."
            ) from error

    def _write(self, work: Work, answers: Sequence[tuple[Tensor, Tensor]], seconds: float) -> list[dict[str, Any]]:
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

    def _figures(self, work: Work, prediction: Prediction, **values: Any) -> dict[str, Any]:
        height, width = work.size
        return new_row(
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


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    # Names of files need not be text.
    with (
        atomic_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as table,
    ):
        lines = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        lines.writeheader()
        lines.writerows(rows)
