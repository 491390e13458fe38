"""The pipeline as DVC drives it: runs once, then only what a change concerns."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from amlp.params import Params, parse_params

STAGES = ["ingest", "validate", "preprocess", "pretrain", "finetune", "scratch", "evaluate", "register", "report"]
TINY = {
    "ingest": {"phantom": {"patients": 16, "images_per_patient": 2, "height": 48, "width": 64}},
    "preprocess": {"height": 32, "width": 32, "val_fraction": 0.25},
    "encoder": {"dim": 24, "depth": 2, "heads": 3},
    "pretrain": {"epochs": 2, "batch": 8, "decoder": {"dim": 24, "depth": 1, "heads": 3}},
    "finetune": {"epochs": 2, "batch": 8, "channels": 8},
    "evaluate": {"bootstrap_samples": 100},
}


# In a fresh process: the candidate's masks of the raw test images score what `evaluate` wrote, case by case.
CANDIDATE = """
import io, mlflow, numpy as np, pandas as pd, zipfile
from PIL import Image

def read(place):
    archive, _, entry = place.partition(".zip/")
    return zipfile.ZipFile("data/ingest/" + archive + ".zip").read(entry)

mlflow.set_tracking_uri("sqlite:///mlflow.db")
model = mlflow.pyfunc.load_model("models:/amlp-segmenter@candidate")
index = pd.read_parquet("data/shards/index.parquet").query("split == 'test'")
scores = pd.read_csv("evaluation/cases.csv").query("model == 'segmenter'").set_index("case_id")
assert len(index) == len(scores)
for case in index.itertuples():
    predicted = model.predict(read(case.image))["mask"] > 0
    truth = np.asarray(Image.open(io.BytesIO(read(case.mask)))) > 0
    size = predicted.sum() + truth.sum()
    dsc = 2 * (predicted & truth).sum() / size if size else 1.0
    assert abs(dsc - scores.dsc[case.case_id]) < 1e-6, case.case_id
    assert abs(predicted.mean() - scores.predicted_fraction[case.case_id]) < 1e-9, case.case_id
print("equal on", len(index), "test images")
"""


class Repository:
    """A git and DVC repository with the project's pipeline and small parameters."""

    def __init__(self, folder: Path, project: Path) -> None:
        self.folder = folder
        shutil.copytree(project / "amlp", folder / "amlp", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
            shutil.copy(project / name, folder / name)
        self.write(parse_params(TINY, "test"))
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
        self.run("git", "init", "--quiet")
        self.run("dvc", "init", "--quiet")
        self.run("git", "add", "--all")
        self.run("git", *identity, "commit", "--quiet", "--message", "start")

    def write(self, params: Params) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params.model_dump(by_alias=True)))

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def run(self, *command: str) -> str:
        result = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=400
        )
        assert result.returncode == 0, f"{command}:\n{result.stdout}\n{result.stderr}"
        return result.stdout + result.stderr

    def ran(self, *command: str) -> list[str]:
        """Run a DVC command and return the stages that it ran."""
        return re.findall(r"Running stage '(\w+)'", self.run("dvc", *command))


@pytest.fixture(scope="module")
def repository(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("dvc"), project)


@pytest.mark.timeout(900)
def test_only_what_a_change_concerns_runs_again(repository):
    assert sorted(repository.ran("repro")) == sorted(STAGES)
    assert (repository.folder / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert "segmenter_dsc" in repository.run("dvc", "metrics", "show")
    assert "file://" in repository.run("dvc", "plots", "show")

    assert repository.ran("repro") == []

    checked = repository.run(sys.executable, "-c", CANDIDATE)
    assert re.search(r"equal on [1-9]\d* test images", checked), checked

    # On two Ray Train workers the run ends in registered versions just the same.
    after = ["pretrain", "finetune", "evaluate", "register", "report"]
    assert sorted(repository.ran("exp", "run", "-S", "pretrain.num_workers=2")) == sorted(after)
    assert yaml.safe_load((repository.folder / "params.yaml").read_text())["pretrain"]["num_workers"] == 2
    assert '"num_workers": 2' in repository.run("dvc", "exp", "show", "--json")
    registration = json.loads((repository.folder / "registration.json").read_text())
    assert (registration["encoder"]["version"], registration["segmenter"]["version"]) == ("2", "2")


@pytest.mark.timeout(900)
def test_a_killed_pretraining_resumes_and_ends_with_the_same_bits(project, tmp_path):
    values = TINY | {"pretrain": TINY["pretrain"] | {"epochs": 40, "checkpoint_epochs": 1}}
    repository = Repository(tmp_path, project)
    repository.write(parse_params(values, "test"))
    assert repository.ran("repro", "pretrain")[-1] == "pretrain"
    encoder = tmp_path / "models" / "encoder" / "encoder.pt"
    expected = encoder.read_bytes()

    # As if it had never run: DVC's cache of runs would bring the encoder back.
    shutil.rmtree(tmp_path / "models")
    shutil.rmtree(tmp_path / ".dvc" / "cache" / "runs")
    (tmp_path / "dvc.lock").unlink()
    process = subprocess.Popen(
        ["dvc", "repro", "pretrain"],
        cwd=tmp_path,
        env=repository.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not any(
        torch.load(file, weights_only=True)["epoch"] >= 3 for file in tmp_path.glob(".amlp/state/pretrain-*/last.pt")
    ):
        assert process.poll() is None, "dvc ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.02)  # between looks at another process's file; what is waited for is the checkpoint
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not encoder.exists(), "killed too late to show anything"

    assert "Resuming after epoch" in repository.run("dvc", "repro", "pretrain")
    assert encoder.read_bytes() == expected
