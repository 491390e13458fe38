"""Segmenting many files at once: each core has a batch of files of its own and reads, runs the model and writes.

That is faster than one model on all cores, whose threads wait for each other in each layer and for what reads and
writes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from amlp.data.images import to_uint8
from amlp.data.pictures import read_image
from amlp.errors import UserError
from amlp.models.predictor import Predictor
from amlp.serving.outputs import VOLUMES, Work, Writer, new_row
from amlp.serving.sources import Source
from amlp.serving.volumes import read_volume

BATCH = 16
# Overlays are to be looked at, and enlarged or native ones would take longer than all the rest.
OVERLAY_SIDE = 512


@dataclass(frozen=True)
class _Failed:
    """A file that can't be read, and why."""

    source: Source
    reason: str


def segment_all(
    predictor: Predictor, sources: Sequence[Source], writer: Writer, *, looks: bool
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
    predictor: Predictor, group: Sequence[Source], writer: Writer, *, looks: bool
) -> list[tuple[Source, list[dict[str, Any]]]]:
    """Read the files of a group, run the model on them, write the masks."""
    loaded = [_load(predictor, source, looks=looks) for source in group]
    pixels = [plane for work in loaded if isinstance(work, Work) for plane in work.pixels]
    started = time.perf_counter()
    answers: list[tuple[Tensor, Tensor]] = []
    for first in range(0, len(pixels), BATCH):
        logits, presence = predictor.logits(torch.from_numpy(np.stack(pixels[first : first + BATCH])))
        answers += zip(logits.split(1), presence.split(1), strict=True)
    seconds = (time.perf_counter() - started) / max(1, len(pixels))

    done, first = [], 0
    for work in loaded:
        if isinstance(work, _Failed):
            done.append((work.source, [new_row(work.source, error=work.reason)]))
            continue
        own = answers[first : (first := first + len(work.pixels))]
        done.append((work.source, writer.write(work, own, work.seconds + seconds * len(own))))
    return done


def _load(predictor: Predictor, source: Source, *, looks: bool) -> Work | _Failed:
    started = time.perf_counter()
    try:
        if source.volume:
            with VOLUMES:
                volume = read_volume(source.path)
                pixels = [predictor.prepare(plane) for plane in volume.slices]
            _, height, width = volume.slices.shape
            return Work(source, (height, width), pixels, time.perf_counter() - started, header=volume.header)
        image = to_uint8(read_image(source.path))
        look = _look(image) if looks else None
        size = (image.shape[0], image.shape[1])
        return Work(source, size, [predictor.prepare(image)], time.perf_counter() - started, look=look)
    except UserError as error:
        return _Failed(source, str(error).removeprefix(f"{source.path}: "))


def _look(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shrink a picture for its overlay."""
    height, width = image.shape[:2]
    scale = min(1.0, OVERLAY_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # A copy: what shares memory with the picture would keep all of it.
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
