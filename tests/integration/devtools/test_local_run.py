"""The pipeline under kfp.local with the real things around it.

DVC's remote is on an S3 server, MLflow with accounts on PostgreSQL and S3. Compared with the same stages run by the
`amlp` command, and with itself from the cache.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from amlp.files import read_json
from amlp.params import Params, load_params, parse_params
from amlp.registry.lineage import folder_md5
from devtools.local import (
    NEVER_CACHED,
    DataRepository,
    LocalKubeflow,
    change_a_pixel,
    kfp_stages,
    write_images,
)
from devtools.servers import MlflowServer, S3Server
from pipelines.arguments import DataSource, pipeline_arguments

COMMIT = "0123456789abcdef0123456789abcdef01234567"
EVERYTHING = {*kfp_stages(), "pull-data", *NEVER_CACHED}
# One process for all stages, for importing torch takes longer than they do.
RUN_STAGES = """
import sys
from amlp.cli import main

for command in sys.argv[1:]:
    if code := main(command.split()):
        sys.exit(code)
"""


@dataclass(frozen=True)
class Platform:
    """Servers, data and parameters, and the way to run the pipeline with them."""

    kubeflow: LocalKubeflow
    repository: DataRepository
    params: Params
    s3: S3Server
    # Plain files, as they were at first.
    images: Path

    def run(self, rev: str) -> tuple[str, dict[str, Path]]:
        data = DataSource(str(self.repository.folder), rev, "data/images")
        arguments = pipeline_arguments(self.params, git_commit=COMMIT, data=data, share="s3://results/reports")
        return self.kubeflow.run(arguments)


@dataclass(frozen=True)
class Run:
    id: str
    commit: str
    tasks: dict[str, Path]


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, project: Path, s3_server: S3Server, mlflow_platform: MlflowServer
) -> Iterator[Platform]:
    root = tmp_path_factory.mktemp("platform")
    for bucket in ("dvc", "results"):
        s3_server.client().create_bucket(Bucket=bucket)
    environment = {**s3_server.environment, **mlflow_platform.environment}
    environment["AMLP_PIPELINE_PAGES"] = "https://kubeflow.example.org/pipeline"
    values = load_params(project / "recipes/tiny.yaml").model_dump(by_alias=True)
    values["register"] = {"tracking_uri": mlflow_platform.address, "experiment": "pipeline",
                          "encoder_name": "pipeline-encoder", "segmenter_name": "pipeline-segmenter"}  # fmt: skip
    values["ingest"]["path"] = "data/images"
    params = parse_params(values, "test")
    write_images(root / "images", patients=16, seed=params.seed)
    repository = DataRepository.create(root / "repository", "s3://dvc/store", environment)
    write_images(repository.folder / "data/images", patients=16, seed=params.seed)
    (root / "kubeflow").mkdir()
    kubeflow = LocalKubeflow(root / "kubeflow", environment)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield Platform(kubeflow, repository, params, s3_server, root / "images")


@pytest.fixture(scope="module")
def first(platform: Platform) -> Run:
    commit = platform.repository.commit("data/images")
    return Run(*_with(platform, commit))


def _with(platform: Platform, commit: str) -> tuple[str, str, dict[str, Path]]:
    run_id, tasks = platform.run(commit)
    return run_id, commit, tasks


@pytest.fixture(scope="module")
def commands(platform: Platform, tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """The folder in which the `amlp` command ran the stages with the same parameters."""
    folder = tmp_path_factory.mktemp("commands")
    values = platform.params.model_dump(by_alias=True)
    values["ingest"]["path"] = str(platform.images)
    (folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    names = ("ingest", "validate", "preprocess", "pretrain", "finetune", "finetune --from-scratch", "evaluate")
    done = subprocess.run([sys.executable, "-c", RUN_STAGES, *names], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def metadata(task: Path, artifact: str) -> dict[str, Any]:
    [entry] = read_json(task / "executor_output.json")["artifacts"][artifact]["artifacts"]
    found: dict[str, Any] = entry["metadata"]
    return found


def test_every_task_ran(first: Run) -> None:
    assert set(first.tasks) == EVERYTHING


def test_both_models_are_registered_with_their_lineage(first: Run, platform: Platform) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=platform.params.register_.tracking_uri)
    registration = read_json(first.tasks["register"] / "registration")
    for kind in ("encoder", "segmenter"):
        version = client.get_model_version_by_alias(f"pipeline-{kind}", "candidate")
        assert str(version.version) == registration[kind]["version"] == "1"
        assert version.tags["git_commit"] == COMMIT
        assert version.tags["data_md5"] == folder_md5(first.tasks["ingest"] / "cases")
        assert version.tags["params_hash"] == platform.params.digest()

    tags = client.get_run(registration["parent_run_id"]).data.tags
    assert tags["source_rev"] == first.commit and tags["source_md5"] == folder_md5(platform.images)
    assert tags["source_uri"].startswith("s3://dvc/store/files/md5/")


def test_the_gate_is_heard(first: Run, platform: Platform) -> None:
    from mlflow import MlflowClient

    decision = read_json(first.tasks["gate"] / "decision")
    assert decision["reference"]["name"] == "the model from scratch" and decision["outcome"] in ("promote", "keep")
    client = MlflowClient(tracking_uri=platform.params.register_.tracking_uri)
    assert client.get_model_version("pipeline-segmenter", "1").tags["gate_outcome"] == decision["outcome"]
    aliases = client.get_registered_model("pipeline-segmenter").aliases
    assert aliases == {"candidate": "1"} | ({"champion": "1"} if decision["outcome"] == "promote" else {})


def test_pipeline_and_mlflow_lead_to_each_other(first: Run, platform: Platform) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=platform.params.register_.tracking_uri)
    experiment = client.get_experiment_by_name("pipeline")
    parents = client.search_runs([experiment.experiment_id], filter_string="tags.pipeline_run LIKE '%'")
    [parent] = [run for run in parents if run.data.tags["pipeline_run"] == first.id]
    assert parent.info.status == "FINISHED" and parent.data.tags["pipeline_outcome"] == "SUCCEEDED"
    assert parent.data.tags["pipeline_run_url"].endswith(f"#/runs/details/{first.id}")
    page = (first.tasks["register"] / "links").read_text(encoding="utf-8")
    assert f"/#/runs/{parent.info.run_id}" in page and "pipeline-segmenter version 1" in page


def test_the_report_is_a_page_of_the_run_and_in_s3(first: Run, platform: Platform) -> None:
    import urllib.request

    from mlflow import MlflowClient

    page = (first.tasks["register"] / "page").read_bytes()
    assert page.lstrip().lower().startswith(b"<!doctype html>")
    client = MlflowClient(tracking_uri=platform.params.register_.tracking_uri)
    parent = read_json(first.tasks["register"] / "registration")["parent_run_id"]
    assert "report.html" in [entry.path for entry in client.list_artifacts(parent)]
    # Whoever has the link needs no account.
    with urllib.request.urlopen(client.get_run(parent).data.tags["report_link"]) as answer:
        assert answer.headers["Content-Type"].startswith("text/html") and answer.read() == page


def test_pages_hold_the_pictures(first: Run) -> None:
    for task, pictures in (("pretrain", 3), ("evaluate", 3)):
        assert (first.tasks[task] / "page").read_text(encoding="utf-8").count("data:image/png;base64,") == pictures


def test_the_results_are_those_of_the_command(first: Run, commands: Path) -> None:
    assert folder_md5(first.tasks["ingest"] / "cases") == folder_md5(commands / "data" / "ingest")
    expected = read_json(commands / "evaluation" / "metrics.json")
    assert {"segmenter_dsc", "scratch_dsc", "threshold_dsc"} <= set(expected)
    assert read_json(first.tasks["evaluate"] / "evaluation" / "metrics.json") == pytest.approx(expected, abs=1e-6)
    # What Kubeflow shows beside the task.
    assert metadata(first.tasks["evaluate"], "metrics") == pytest.approx(expected, abs=1e-6)


def test_the_cache_knows_the_same_and_what_has_changed(first: Run, platform: Platform) -> None:
    """In one test, for the runs follow each other."""
    assert set(platform.run(first.commit)[1]) == NEVER_CACHED

    # The same images at another commit: only the look for them is new.
    note = platform.repository.folder / "README"
    note.write_text("what these images are", encoding="utf-8")
    later = platform.repository.commit("data/images")
    assert later != first.commit
    assert set(platform.run(later)[1]) == {"pull-data"} | NEVER_CACHED

    # Other bytes in the same place.
    change_a_pixel(platform.repository.folder / "data/images")
    assert set(platform.run(platform.repository.commit("data/images"))[1]) == EVERYTHING
