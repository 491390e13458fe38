"""Artifacts that Kubeflow's store lost, or parts of them.

As in components, annotations are read: no `from __future__ import annotations` here.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp.dsl import Dataset, Input, Metrics, Output

from amlp.errors import UserError
from components.contents import check_inputs, contents, describe_outputs


def write(shards: Output[Dataset], metrics: Output[Metrics]) -> None:
    """Write some files."""


def read(params: str, shards: Input[Dataset]) -> None:
    """Read them."""


@pytest.fixture
def shards(tmp_path: Path) -> Dataset:
    """As a task wrote it, and as Kubeflow hands it on."""
    folder, metrics = tmp_path / "shards", tmp_path / "metrics"
    (folder / "train").mkdir(parents=True)
    for name in ("index", "train/0", "train/1"):
        (folder / name).write_text(f"bytes of {name}")
    metrics.write_text("{}")
    wrote = {"shards": Dataset(uri=str(folder)), "metrics": Metrics(uri=str(metrics))}
    describe_outputs("preprocess", write, wrote)
    assert not wrote["metrics"].metadata  # it would be a figure on the page
    return Dataset(uri=str(folder), metadata=json.loads(json.dumps(wrote["shards"].metadata)))


def test_what_was_written_is_read(shards: Dataset) -> None:
    check_inputs(read, {"params": "{}", "shards": shards})
    assert shards.metadata["contents"].startswith("preprocess: 3 files, 46 bytes, ")


def remake_empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "lose",
    [
        remake_empty,
        shutil.rmtree,
        lambda folder: (folder / "train/1").unlink(),
        lambda folder: (folder / "train/1").write_text("bytes of train/X"),
        lambda folder: (folder / "train/1").rename(folder / "train/2"),
        lambda folder: (folder / "another").touch(),
    ],
)
def test_what_is_lost_or_changed_is_named(shards: Dataset, lose: Callable[[Path], Any]) -> None:
    lose(Path(shards.path))
    with pytest.raises(UserError, match=r"lost or changed shards of task preprocess.*3 files.*--fresh preprocess"):
        check_inputs(read, {"params": "{}", "shards": shards})


def test_an_artifact_of_which_nothing_is_known_passes(tmp_path: Path) -> None:
    check_inputs(read, {"params": "", "shards": Dataset(uri=str(tmp_path))})


def test_a_file_and_a_folder_have_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("12345")
    assert contents("x", tmp_path / "a").startswith("x: 1 file, 5 bytes, ")
    assert contents("x", tmp_path).startswith("x: 1 file, 5 bytes, ")
    assert contents("x", tmp_path / "absent").startswith("x: 0 files, 0 bytes, ")
