"""One name per path of a run, the same as in dvc.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from amlp.errors import ListedError
from amlp.layout import RunFolder


def test_the_folders_are_the_outputs_of_the_pipeline(project: Path) -> None:
    run = RunFolder(Path())
    stages = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    folders = [run.ingest, run.validate, run.shards, run.encoder, run.segmenter, run.scratch, run.evaluation]
    named = [*(folder.path for folder in folders), run.registration, run.report]
    assert [str(path) for path in named] == [out for stage in stages.values() for out in stage["outs"]]


def test_files_that_dvc_shows_have_a_name(project: Path) -> None:
    run = RunFolder(Path())
    named = {
        str(getattr(folder, name))
        for folder in (run.ingest, run.validate, run.shards, run.encoder, run.segmenter, run.scratch, run.evaluation)
        for name in dir(type(folder))
        if not name.startswith("_") and isinstance(getattr(folder, name), Path)
    }
    pipeline = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))
    plotted = [file for plot in pipeline["plots"] for settings in plot.values() for file in settings["y"]]
    assert {*pipeline["metrics"], *plotted} <= named


def test_all_files_that_are_missing_are_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.encoder.path.mkdir(parents=True)
    run.encoder.weights.touch()
    with pytest.raises(ListedError, match=r"(?s)report: .* lacks outputs .*evaluation/cases\.csv.*dvc repro") as caught:
        run.require(run.encoder.weights, run.evaluation.cases, run.shards.index, stage="report")
    assert caught.value.problems == ["evaluation/cases.csv", "data/shards/index.parquet"]
