"""The pipeline, run by kfp.local on a tiny phantom, against the same stages run by the `amlp` command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from amlp.files import read_json
from amlp.params import Params, parse_params
from amlp.registry.lineage import folder_md5
from pipelines.arguments import pipeline_arguments

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL: dict[str, Any] = {
    "seed": 1,
    "ingest": {"phantom": {"patients": 16, "images_per_patient": 2, "height": 48, "width": 56}},
    "preprocess": {"height": 48, "width": 48, "test_fraction": 0.25, "val_fraction": 0.25},
    "encoder": {"dim": 24, "depth": 2, "heads": 3},
    "pretrain": {"epochs": 2, "batch": 8, "precision": "fp32", "decoder": {"dim": 12, "depth": 1, "heads": 3}},
    "finetune": {"epochs": 2, "batch": 8, "precision": "fp32", "channels": 8},
    "evaluate": {"bootstrap_samples": 100},
}
# kfp.local keeps its settings in globals, so it gets a process of its own.
RUN_PIPELINE = """
import json, sys, warnings
from kfp import local
from pipelines.training import training

warnings.filterwarnings("ignore", "You may be attemping", RuntimeWarning)  # no "python" in the image's name
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1], enable_caching=True)
training(**json.load(sys.stdin))
"""
# One process for all stages, for importing torch takes longer than they do.
RUN_STAGES = """
import sys
from amlp.cli import main

for command in sys.argv[1:]:
    if code := main(command.split()):
        sys.exit(code)
"""


def python(code: str, *arguments: str, cwd: Path, given: str = "") -> str:
    """Run Python code in `cwd`, where neither the library nor its repository is; return what it printed."""
    project = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=given, cwd=cwd, env={**os.environ, "PYTHONPATH": project}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@dataclass(frozen=True)
class Pipeline:
    """Runs of the pipeline that share a cache and an MLflow database."""

    root: Path
    params: Params

    def run(self) -> Path:
        """Run it; returns the folder that holds one for each task that was executed."""
        before = set(self.root.glob("outputs/amlp-training-*"))
        arguments = pipeline_arguments(self.params, git_commit=COMMIT)
        python(RUN_PIPELINE, str(self.root / "outputs"), cwd=self.root, given=json.dumps(arguments))
        new = set(self.root.glob("outputs/amlp-training-*")) - before
        return new.pop() if new else self.root / "outputs" / "nothing"

    @property
    def tracking_uri(self) -> str:
        return self.params.register_.tracking_uri


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Pipeline:
    root = tmp_path_factory.mktemp("pipeline")
    shutil.copy(migrated_database, root / "mlflow.db")
    values = {**SMALL, "register": {"tracking_uri": f"sqlite:///{root / 'mlflow.db'}"}}
    return Pipeline(root, parse_params(values, "test"))


@pytest.fixture(scope="module")
def first_run(pipeline: Pipeline) -> Path:
    return pipeline.run()


@pytest.fixture(scope="module")
def commands(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the `amlp` command ran the stages with the same parameters."""
    folder = tmp_path_factory.mktemp("commands")
    values = pipeline.params.model_dump(by_alias=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    names = ("ingest", "validate", "preprocess", "pretrain", "finetune", "finetune --from-scratch", "evaluate")
    python(RUN_STAGES, *names, cwd=folder)
    return folder


def executed(run: Path) -> set[str]:
    # A task writes this file at its end.
    return {file.parent.name for file in run.glob("*/executor_output.json")}


def metadata(run: Path, task: str, artifact: str) -> dict[str, Any]:
    [entry] = read_json(run / task / "executor_output.json")["artifacts"][artifact]["artifacts"]
    found: dict[str, Any] = entry["metadata"]
    return found


def test_every_stage_ran(first_run: Path, project: Path) -> None:
    stages = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert executed(first_run) == set(stages)


def test_both_models_are_registered_with_their_lineage(first_run: Path, pipeline: Pipeline) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=pipeline.tracking_uri)
    registration = read_json(first_run / "register" / "registration")
    assert registration["tracking_uri"] == pipeline.tracking_uri
    assert client.get_run(registration["parent_run_id"]).info.status == "FINISHED"
    for name in ("amlp-encoder", "amlp-segmenter"):
        version = client.get_model_version_by_alias(name, "champion")
        assert str(version.version) == "1"
        assert version.tags["git_commit"] == COMMIT
        assert version.tags["data_md5"] == folder_md5(first_run / "ingest" / "cases")
        assert version.tags["params_hash"] == pipeline.params.digest()


def test_the_report_is_a_page_of_the_run(first_run: Path, pipeline: Pipeline) -> None:
    from mlflow import MlflowClient

    page = first_run / "report" / "page"
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    parent = read_json(first_run / "register" / "registration")["parent_run_id"]
    names = [entry.path for entry in MlflowClient(tracking_uri=pipeline.tracking_uri).list_artifacts(parent)]
    assert "report.html" in names


def test_the_results_are_those_of_the_command(first_run: Path, commands: Path) -> None:
    assert folder_md5(first_run / "ingest" / "cases") == folder_md5(commands / "data" / "ingest")
    expected = read_json(commands / "evaluation" / "metrics.json")
    assert {"segmenter_dsc", "scratch_dsc", "threshold_dsc"} <= set(expected)
    assert read_json(first_run / "evaluate" / "evaluation" / "metrics.json") == pytest.approx(expected, abs=1e-6)
    # What Kubeflow shows beside the task.
    assert metadata(first_run, "evaluate", "metrics") == pytest.approx(expected, abs=1e-6)


def test_a_run_of_the_same_executes_nothing(first_run: Path, pipeline: Pipeline) -> None:
    assert executed(first_run) and executed(pipeline.run()) == set()
