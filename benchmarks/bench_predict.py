"""Measure `amlp predict` on a folder: its speed against the bare model's, and its memory over 5,000 images.

    make bench-predict DATA=folder      # or: python -m benchmarks.bench_predict --data folder --model segmenter.pt

The bare model runs on batches that are in memory already, of the same size, mirrored too where the segmenter averages
both; `predict` reads files, and writes masks, overlays and the table. Both take turns in one process, and the figure is
the median of the ratios within a turn, so that other work on the machine favours neither. `work_ratio` is the same of
processor time, and means something with OMP_NUM_THREADS=1 alone: else threads that wait count as working. Images are
linked under new names until there are as many as asked for.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from amlp.data.pictures import read_image
from amlp.files import sha256
from amlp.models.predictor import Predictor
from amlp.registry.weights import Weights
from amlp.serving.batches import BATCH
from amlp.serving.outputs import JOURNAL
from amlp.serving.predict import predict_folder
from amlp.serving.sources import Source, list_sources
from benchmarks.machine import report

EARLY, IMAGES = 1000, 5000


def link(sources: Sequence[Source], folder: Path, count: int) -> Path:
    """Make a folder of `count` links to the sources, again and again where there are fewer."""
    folder.mkdir()
    for number in range(count):
        source = sources[number % len(sources)].path
        os.symlink(source.resolve(), folder / f"{number:05d}{source.suffix}")
    return folder


def bare_rate(predictor: Predictor, batches: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Images per second of the model on batches in memory, and seconds of processor time an image."""
    start, work = time.perf_counter(), time.process_time()
    for batch in batches:
        predictor.logits(batch)
    images = sum(len(batch) for batch in batches)
    return images / (time.perf_counter() - start), (time.process_time() - work) / images


class Memory:
    """Watches this process's resident memory while a run notes what it finished."""

    def __init__(self, journal: Path) -> None:
        self.samples: list[tuple[int, float]] = []  # Finished files, MB.
        self._journal, self._end = journal, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        process, lines, offset = psutil.Process(), 0, 0
        while not self._end.wait(0.2):
            try:
                with self._journal.open("rb") as file:
                    file.seek(offset)
                    new = file.read()
            except FileNotFoundError:
                continue
            lines, offset = lines + new.count(b"\n"), offset + len(new)
            self.samples.append((lines, process.memory_info().rss / 1e6))

    def between(self, first: int, last: int) -> float:
        """Largest memory, MB, while from `first` to `last` files were finished."""
        return max(memory for count, memory in self.samples if first <= count <= last)


def measure(
    *, weights: Weights, data: Path, exclude: Sequence[str], images: int, rounds: int, part: int
) -> dict[str, Any]:
    """Run both in turn `rounds` times on `part` images, then `predict` once on `images`."""
    sources = [one for one in list_sources(data, exclude=exclude)[0] if not one.volume]
    predictor = Predictor.load(weights.file)
    pixels = np.stack([predictor.prepare(read_image(one.path)) for one in sources[: 20 * BATCH]])
    batches = [batch for batch in torch.from_numpy(pixels).split(BATCH) if len(batch) == BATCH]
    for batch in batches[:3]:
        predictor.logits(batch)

    load = os.getloadavg()[0]  # Over the number of cores, other work takes part.
    turns = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few = link(sources, folder / "few", part)
        for number in range(rounds):
            before = bare_rate(predictor, batches)
            work = time.process_time()
            done = predict_folder(weights=weights, source=few, out=folder / f"out{number}")
            work = (time.process_time() - work) / part
            # The mean of before and after, for a machine may slow down meanwhile.
            bare, bare_work = np.mean([before, bare_rate(predictor, batches)], axis=0).tolist()
            turns.append(
                {"bare": bare, "predict": done["images_per_second"], "bare_work": bare_work, "predict_work": work}
            )
        many, out = link(sources, folder / "many", images), folder / "out"
        with Memory(out / JOURNAL) as memory:
            done = predict_folder(weights=weights, source=many, out=out)
    assert done["bad_files"] == 0
    early = min(EARLY, images // 5)
    return {
        "ratio": statistics.median(turn["predict"] / turn["bare"] for turn in turns),
        "work_ratio": statistics.median(turn["bare_work"] / turn["predict_work"] for turn in turns),
        "bare_images_per_second": statistics.median(turn["bare"] for turn in turns),
        "predict_images_per_second": statistics.median(turn["predict"] for turn in turns),
        "turns": turns,
        "load_average_before": load,
        "images_a_turn": part,
        "long_run_images": images,
        "long_run_images_per_second": done["images_per_second"],
        "memory_mb_first": memory.between(early // 2, early),
        "memory_mb_last": memory.between(images - early // 2, images + 1),
        "memory_first_images": early,
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "source_images": len(sources),
        "mean_pixels": float(np.mean([read_image(one.path).size for one in sources[:200]])),
        "input": list(pixels.shape[1:]),
        "parameters": sum(p.numel() for p in predictor.model.parameters()),
        "flip_average": predictor.flip_average,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--model", type=Path, default=Path("workspaces/busi/models/segmenter/segmenter.pt"))
    parser.add_argument("--exclude", action="append", default=["*_mask*.png"], help="as in amlp predict")
    parser.add_argument("--images", type=int, default=IMAGES, help="of the long run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", type=int, default=400, help="images a turn")
    args = parser.parse_args(argv)
    if args.images < EARLY:
        parser.error(f"--images {args.images}: expected {EARLY} or more, or memory can't be compared with its start")
    weights = Weights(args.model, args.model.name, sha256(args.model))
    figures = measure(
        weights=weights, data=args.data, exclude=args.exclude, images=args.images, rounds=args.rounds, part=args.part
    )  # fmt: skip
    report(
        "predict",
        figures,
        f"amlp predict: {figures['predict_images_per_second']:.1f} images/s, {figures['ratio']:.2f} of the bare "
        f"model's {figures['bare_images_per_second']:.1f}; memory {figures['memory_mb_first']:.0f} MB at "
        f"{figures['memory_first_images']} images, {figures['memory_mb_last']:.0f} MB at {figures['long_run_images']}",
        packages=("torch", "timm", "numpy", "pillow"),
    )


if __name__ == "__main__":
    main()
