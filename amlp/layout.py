"""Where a run's files are: one name for each path that stages write and others read.

    RunFolder(Path(".")).encoder.weights          # models/encoder/encoder.pt
    SegmenterFolder(folder).history               # folder/history.csv

The folders of the stages are those that dvc.yaml names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amlp.errors import ListedError


@dataclass(frozen=True)
class _File:
    """A file or folder of a folder."""

    name: str

    def __get__(self, folder: Folder, owner: Any = None) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class Folder:
    """What one stage writes."""

    path: Path


class IngestFolder(Folder):
    """Images and masks, and what is known of each."""

    manifest = _File("manifest.parquet")
    problems = _File("problems.csv")
    summary = _File("summary.json")


class ValidateFolder(Folder):
    """The cases that can be used, and what is wrong with the others."""

    manifest = _File("manifest.parquet")
    thumbnails = _File("thumbnails.npy")
    bad_cases = _File("bad_cases.csv")
    warnings = _File("warnings.csv")
    expectations = _File("expectations.json")
    docs = _File("data_docs")
    metrics = _File("metrics.json")


class ShardsFolder(Folder):
    """Packed images of each split, and their index."""

    index = _File("index.parquet")
    stats = _File("stats.json")
    made_by = _File("made_by.json")
    metrics = _File("metrics.json")


class EncoderFolder(Folder):
    """What pre-training writes."""

    weights = _File("encoder.pt")
    # Lesion scores (N, h, w) float32 of the training split as pre-training refined them, in the split's row order; all
    # 0 after a pre-training without MPS and CCL. And of which cases they are.
    scores = _File("scores.npy")
    scores_of = _File("scores.json")
    history = _File("history.csv")
    steps = _File("steps.csv")
    system = _File("system.csv")
    diagnostics = _File("diagnostics.csv")
    metrics = _File("metrics.json")
    pictures = _File("pictures")


class SegmenterFolder(Folder):
    """What fine-tuning writes, from the encoder or from scratch."""

    weights = _File("segmenter.pt")
    history = _File("history.csv")
    system = _File("system.csv")
    # What became of the encoder's tensors, and which images were labelled.
    loading = _File("loading.json")
    labels = _File("labels.json")
    metrics = _File("metrics.json")


class EvaluationFolder(Folder):
    """Scores of each case, and their means with intervals."""

    cases = _File("cases.csv")
    summary = _File("summary.json")
    metrics = _File("metrics.json")
    histogram = _File("dsc_histogram.csv")
    overlays = _File("overlays")


@dataclass(frozen=True)
class RunFolder:
    """A folder in which `dvc repro` runs."""

    root: Path

    @property
    def ingest(self) -> IngestFolder:
        return IngestFolder(self.root / "data/ingest")

    @property
    def validate(self) -> ValidateFolder:
        return ValidateFolder(self.root / "data/validate")

    @property
    def shards(self) -> ShardsFolder:
        return ShardsFolder(self.root / "data/shards")

    @property
    def encoder(self) -> EncoderFolder:
        return EncoderFolder(self.root / "models/encoder")

    @property
    def segmenter(self) -> SegmenterFolder:
        return SegmenterFolder(self.root / "models/segmenter")

    @property
    def scratch(self) -> SegmenterFolder:
        return SegmenterFolder(self.root / "models/scratch")

    @property
    def evaluation(self) -> EvaluationFolder:
        return EvaluationFolder(self.root / "evaluation")

    @property
    def registration(self) -> Path:
        return self.root / "registration.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def require(self, *files: Path, stage: str) -> None:
        """Check that earlier stages wrote these files.

        Raises:
            ListedError: names those that are not there.
        """
        if missing := [file.relative_to(self.root).as_posix() for file in files if not file.is_file()]:
            raise ListedError(
                f"{stage}: {self.root} lacks outputs of earlier stages", missing, "Run them first: `dvc repro`."
            )

    @property
    def lock(self) -> Path:
        """DVC's record of what each stage read and wrote."""
        return self.root / "dvc.lock"
