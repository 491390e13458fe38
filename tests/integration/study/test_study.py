"""A tiny study, run for real: killed, resumed, run again, and its page against the files it is made from."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from amlp.cli import main
from amlp.data.ingest import ingest
from amlp.data.preprocess import preprocess
from amlp.data.privacy import Pseudonyms
from amlp.data.validate import validate
from amlp.files import read_json
from amlp.params import parse_params

RECIPE = {
    "ingest": {"phantom": {"patients": 12, "images_per_patient": 2, "height": 48, "width": 56}},
    "preprocess": {"height": 32, "width": 32, "test_fraction": 0.25, "val_fraction": 0.25},
    "encoder": {"dim": 24, "depth": 2, "heads": 3},
    "pretrain": {"epochs": 40, "batch": 8, "checkpoint_epochs": 1, "decoder": {"dim": 12, "depth": 1, "heads": 3}},
    "finetune": {"epochs": 2, "batch": 4, "channels": 8, "validate_epochs": 2},
    "evaluate": {"bootstrap_samples": 200},
}
STUDY = {
    "name": "tiny",
    "title": "Tiny | study",
    "recipe": "recipe.yaml",
    "reference": "full",
    "variants": {
        "scratch": {"title": "from <scratch>", "pretrain": False, "seeds": [0]},
        "full": {"title": "AMLP", "seeds": [0]},
    },
    "fractions": {0.5: {"epochs": 3}, 1.0: {}},
    "aims": [{"fraction": 0.5, "better": "full", "than": "scratch", "by": -1.0}],
}
UNITS = 1 + 4 + 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """What `dvc repro preprocess` leaves in data/."""
    params, folder = parse_params(RECIPE, "recipe"), tmp_path_factory.mktemp("study") / "data"
    source = params.ingest.model_copy(update={"path": str(project / params.ingest.path)})
    ingest(params=source, seed=0, out=folder / "ingest", pseudonyms=Pseudonyms.of_environment())
    validate(params=params.validate_, ingest=folder / "ingest", out=folder / "validate")
    preprocess(
        params=params.preprocess,
        scores=params.scores,
        seed=0,
        ingest=folder / "ingest",
        validated=folder / "validate",
        out=folder / "shards",
    )
    return folder


@pytest.fixture
def folder(tmp_path: Path, data: Path, tracking_uri: str) -> Path:
    """A working folder with data, recipe, study and an empty MLflow database."""
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return tmp_path


COMMAND = ["study", "study.yaml", "--page", "docs/results.md"]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "amlp", *COMMAND, *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip


def runs(tracking_uri: str) -> pd.DataFrame:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri)
    home = client.get_experiment_by_name("amlp-study")
    return pd.DataFrame(
        {"id": run.info.run_id, "status": run.info.status, **run.data.tags}
        for run in client.search_runs([home.experiment_id])
    )


@pytest.mark.timeout(900)
def test_a_killed_study_resumes_and_ends_with_every_run_recorded_once(
    folder: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(folder, "--only", "variant=full")
    deadline = time.monotonic() + 200
    checkpoint = folder / "study" / "state"
    while not any(
        torch.load(found, weights_only=True)["epoch"] >= 2 for found in checkpoint.glob("pretrain-*/last.pt")
    ):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.02)  # between looks at another process's file; what is waited for is the checkpoint
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list(folder.glob("study/units/*/result")), "killed too late to show anything"

    # From here on in this process: its units are processes of their own anyway.
    monkeypatch.chdir(folder)
    assert main([*COMMAND, "--jobs", "2"]) == 0
    [pretraining] = folder.glob("study/units/pretrain-*")
    assert "Resuming after epoch" in (pretraining / "log.txt").read_text()
    assert "Wrote docs/results.md" in capsys.readouterr().out
    found = runs(tracking_uri)
    below = found[found["mlflow.parentRunId"].notna()]
    assert len(found) == 1 + UNITS and set(found["status"]) == {"FINISHED"}
    assert below["kind"].value_counts().to_dict() == {"finetune": 4, "score": 4, "pretrain": 1}
    assert below["unit"].is_unique

    page = (folder / "docs" / "results.md").read_text()
    assert page.startswith("# Tiny \\| study\n")
    assert "from &lt;scratch&gt;" in page and "<scratch>" not in page
    assert "- finished: 4 of 4 models\n" in page
    assert re.search(r"\| AMLP over .* \| \*\*too few seeds\*\* \|", page)
    assert str(folder) not in page
    for unit in folder.glob("study/units/score-*"):
        record, cases = read_json(unit / "record.json"), pd.read_csv(unit / "result" / "cases.csv")
        mean = cases.loc[cases["model"] == "segmenter", "dsc"].mean()
        part = page.split(f"### {record['fraction']:.0%} of the labels")[1]
        title = {"scratch": "from &lt;scratch&gt;", "full": "AMLP"}[record["variant"]]
        assert re.search(rf"^\| {title} \| 1 \| {mean:.3f} \(", part, flags=re.MULTILINE)
    for picture in re.findall(r"\]\((images/[\w.-]+)\)", page):
        Image.open(folder / "docs" / picture).verify()
    # No example: nothing says that the images are public.
    assert len(list((folder / "docs" / "images").iterdir())) == 2

    # Once more: nothing runs, nothing is recorded twice, and the page is the same to the byte.
    assert main(COMMAND) == 0
    assert capsys.readouterr().out.count("was finished") == UNITS
    assert len(runs(tracking_uri)) == 1 + UNITS
    assert (folder / "docs" / "results.md").read_text() == page

    # Other data: said, and nothing is lost.
    scores = next((folder / "data" / "shards").glob("train-scores-*.npy"))
    scores.write_bytes(scores.read_bytes()[:-1] + b"\x01")
    assert main(COMMAND) == 2
    output = capsys.readouterr().err
    assert output.count("another data") == UNITS and "--stale keep" in output
    assert "- **made by other code, data or models" not in page
    assert main([*COMMAND, "--stale", "keep", "--only", "seed=0"]) == 0
    assert "- **made by other code, data or models" in (folder / "docs" / "results.md").read_text()


def test_a_failing_unit_stops_only_those_that_need_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # One step with such a learning rate is no training any more: this variant's pre-training alone fails.
    full = {"title": "AMLP", "seeds": [0], "params": {"pretrain.lr": 1e30, "pretrain.warmup": 0.0}}
    study = STUDY | {"fractions": {1.0: {}}, "aims": [], "variants": STUDY["variants"] | {"full": full}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    monkeypatch.chdir(folder)
    assert main([*COMMAND, "--jobs", "2"]) == 1
    output = capsys.readouterr()
    assert "score scratch 1 seed 0: took" in output.out
    assert "finetune full 1 seed 0: needs pretrain full seed 0, which failed" in output.err
    assert "log.txt" in output.err
    assert "- finished: 1 of 2 models; **the study is not complete**" in (folder / "docs/results.md").read_text()


def test_settings_are_explored_without_the_test_split(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = STUDY["variants"]["scratch"]
    variants = {"scratch": scratch, "slow": scratch | {"title": "slow", "params": {"finetune.lr": 1e-4}}}
    study = (
        STUDY
        | {"fractions": {0.5: {}}, "aims": [], "variants": variants, "reference": "scratch", "scored": "unused"}
        | {"public_images": True}
    )
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    index = pd.read_parquet(folder / "data/shards/index.parquet").set_index("case_id")
    # What is not read may be gone.
    gone = set(index.loc[index["split"] == "test", ["image", "mask"]].to_numpy().ravel())
    archive = folder / "data/ingest/pixels-00000.zip"
    with zipfile.ZipFile(archive) as file:
        kept = {name: file.read(name) for name in file.namelist() if f"{archive.name}/{name}" not in gone}
    assert len(kept) + len(gone) == len(index) * 2
    archive.unlink()
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in kept.items():
            file.writestr(name, data)
    monkeypatch.chdir(folder)
    assert main(COMMAND) == 0
    seen = []
    for unit in sorted(folder.glob("study/units/score-*")):
        cases = pd.read_csv(unit / "result/cases.csv").query("model == 'segmenter'")
        assert set(index.loc[cases["case_id"], "split"]) == {"train"}
        seen.append(set(cases["case_id"]))
    assert len(seen) == 2 and seen[0] == seen[1]
    page = (folder / "docs/results.md").read_text()
    assert "did not see**" in page
    assert "## Unused training images" in page
    examples = (folder / "docs/images/tiny-examples.png").read_bytes()

    (folder / "study.yaml").write_text(yaml.safe_dump(study | {"public_images": False}, sort_keys=False))
    (folder / "docs/images/tiny-examples.png").unlink()
    assert main([*COMMAND, "--page-only"]) == 0
    assert "Unused training images" not in (folder / "docs/results.md").read_text()
    assert (folder / "study/tiny-examples.png").read_bytes() == examples
    assert not (folder / "docs/images/tiny-examples.png").exists(), "patients' images never reach the page"
