"""What the images are for, done in them: stages, tasks of Kubeflow, a Ray head, a version of the data, MLflow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml

from amlp.registry.lineage import folder_md5
from tests.support.containers import Images
from tests.support.three_stages import PARAMS, STAGES, three_stages_arguments

pytestmark = [pytest.mark.image, pytest.mark.timeout(1800)]

# The head's container and the one that prints the log are one here, for they share /tmp.
RUN_HEAD = """
set -eu
ray start --head --num-cpus=1 --dashboard-host=0.0.0.0 --node-ip-address=127.0.0.1 --block > /tmp/head.log 2>&1 &
(sh -c "$JOB_LOG") > /tmp/job.log 2>&1 &
healthy() { wget --tries 1 -T 10 -q -O- "$1" | grep -q success; }
until healthy http://127.0.0.1:52365/api/local_raylet_healthz && healthy http://127.0.0.1:8265/api/gcs_healthz; do
    sleep 1
done
ray job submit --address http://127.0.0.1:8265 -- $ENTRYPOINT
until grep -q "^amlp " /tmp/job.log; do sleep 1; done
echo "job-log: $(cat /tmp/job.log)"
"""
RUN_SERVER = """
import mlflow, os, subprocess, sys, time, urllib.error, urllib.request
server = subprocess.Popen(sys.argv[1:])

def status(path):
    try:
        return urllib.request.urlopen("http://127.0.0.1:5000" + path, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0

while status("/health") != 200:
    assert server.poll() is None, server.returncode
    time.sleep(1)
print("without password:", status("/api/2.0/mlflow/experiments/search?max_results=1"))
os.environ["MLFLOW_TRACKING_USERNAME"] = os.environ["MLFLOW_AUTH_ADMIN_USERNAME"]
os.environ["MLFLOW_TRACKING_PASSWORD"] = os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"]
mlflow.set_tracking_uri("http://127.0.0.1:5000")
with mlflow.start_run() as run:
    mlflow.log_text("kept", "note.txt")
print("artifact:", mlflow.artifacts.load_text(run.info.artifact_uri + "/note.txt"))
"""


def run(*command: str, cwd: Path, given: str = "", **variables: str) -> str:
    """Run a command outside of the containers."""
    done = subprocess.run(
        command, input=given, cwd=cwd, env={**os.environ, **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def write_params(folder: Path) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS.model_dump(by_alias=True)), encoding="utf-8")


@pytest.fixture(scope="module")
def outside(images: Images, tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """The folder in which the `amlp` command ran the stages, without a container."""
    folder = tmp_path_factory.mktemp("outside")
    write_params(folder)
    for stage in STAGES:
        run(sys.executable, "-m", "amlp", stage, cwd=folder, PYTHONPATH=str(project))
    return folder


def test_stages_write_the_bytes_that_they_write_outside(images: Images, data: Path, outside: Path) -> None:
    write_params(data)
    for stage in STAGES:
        images.run("train", "amlp", stage, data=data)
    assert folder_md5(data / "data/ingest") == folder_md5(outside / "data/ingest")
    assert folder_md5(data / "data/shards") == folder_md5(outside / "data/shards")
    # Great Expectations dates its pages.
    for name in ("manifest.parquet", "bad_cases.csv", "metrics.json"):
        assert (data / "data/validate" / name).read_bytes() == (outside / "data/validate" / name).read_bytes(), name
    assert (data / "data/ingest/manifest.parquet").stat().st_uid == 10001


def test_kubeflows_tasks_write_the_bytes_of_the_command(
    images: Images, data: Path, outside: Path, tmp_path: Path, project: Path
) -> None:
    def run_from(commit: str) -> str:
        return run(
            sys.executable, "-m", "tests.support.three_stages", str(data), cwd=tmp_path,
            given=json.dumps(three_stages_arguments(PARAMS, commit)),
            PYTHONPATH=str(project), AMLP_STAGES_IMAGE=images.name("stages"),
        )  # fmt: skip

    with pytest.raises(AssertionError, match="submitted from commit 0123, and this image was built from"):
        run_from("0123")
    for root in data.glob("three-stages-*"):
        shutil.rmtree(root)
    log = run_from(images.run("stages", "printenv", "AMLP_GIT_COMMIT").strip())
    # kfp.local takes a container that is gone before it looked for one that did well: outputs tell.
    (root,) = data.glob("three-stages-*")
    assert folder_md5(root / "ingest/cases") == folder_md5(outside / "data/ingest"), log
    assert folder_md5(root / "preprocess/shards") == folder_md5(outside / "data/shards"), log
    manifest = Path("manifest.parquet")
    assert (root / "validate/validated" / manifest).read_bytes() == (outside / "data/validate" / manifest).read_bytes()


def test_a_ray_head_runs_a_job_and_shows_its_log(images: Images, project: Path) -> None:
    template = yaml.safe_load((project / "k8s/base/runs/rayjob.yaml").read_text(encoding="utf-8"))
    containers = template["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    head, job_log = containers
    environment = {entry["name"]: entry["value"] for entry in head["env"]}
    environment |= {
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,
        "ENTRYPOINT": template["spec"]["entrypoint"],
        "JOB_LOG": job_log["command"][2],
    }
    folders = {mount["mountPath"] for mount in head["volumeMounts"]} - {"/dev/shm", "/tmp"}
    options = ["--shm-size=1g", *(f"--tmpfs={folder}:mode=1777" for folder in sorted(folders))]
    shown = images.run("train", "timeout", "600", "bash", "-c", RUN_HEAD, env=environment, options=options)
    assert "amlp 0." in shown.partition("job-log: ")[2], shown


def test_a_task_without_torch_compiles_the_pipeline(images: Images, project: Path, data: Path) -> None:
    images.run("pipeline", "python", "-m", "pipelines", "compile", "--out", "/data/training.yaml", data=data)
    golden = project / "pipelines/training.yaml"
    # The pipeline, and what is Kubernetes' alone.
    compiled, expected = (list(yaml.safe_load_all(path.read_text())) for path in (data / "training.yaml", golden))
    assert len(compiled) == 2 and compiled == expected


def test_a_task_without_torch_reads_a_version_of_the_data(images: Images, data: Path) -> None:
    repository = data / "repository"
    (repository / "images").mkdir(parents=True)
    (repository / "images" / "a.txt").write_text("first")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    dvc = [sys.executable, "-m", "dvc"]
    commands: list[list[str]] = [
        ["git", "init", "--quiet"], [*dvc, "init", "--quiet"], [*dvc, "remote", "add", "-d", "store", "/data/store"],
        [*dvc, "remote", "add", "--local", "store", str(data / "store"), "--force"], [*dvc, "add", "images"],
        [*dvc, "push"], ["git", "add", "--all"], [*git, "commit", "--quiet", "--message=first"],
    ]  # fmt: skip
    for command in commands:
        run(*command, cwd=repository)
    first = run("git", "rev-parse", "HEAD", cwd=repository).strip()
    (repository / "images" / "a.txt").write_text("second")
    for command in commands[4:-1]:
        run(*command, cwd=repository)
    run(*git, "commit", "--quiet", "--message=second", cwd=repository)

    run("git", "clone", "--quiet", "--bare", str(repository), str(data / "bare.git"), cwd=data)
    # Not the container's user's, and libgit2 heeds none of git's variables that would allow that.
    (data / ".gitconfig").write_text("[safe]\n\tdirectory = /data/bare.git\n")
    code = f"import dvc.api; print(dvc.api.read('images/a.txt', repo='/data/bare.git', rev='{first}'))"
    shown = images.run("pipeline", "python", "-c", code, data=data, env={"HOME": "/data"})
    assert shown.splitlines()[-1] == "first"


def test_mlflow_serves_with_accounts(images: Images, project: Path, data: Path) -> None:
    objects = list(yaml.safe_load_all((project / "k8s/base/mlflow.yaml").read_text(encoding="utf-8")))
    (container,) = objects[0]["spec"]["template"]["spec"]["containers"]
    generators = yaml.safe_load((project / "k8s/base/kustomization.yaml").read_text())["configMapGenerator"]
    (literals,) = [entry["literals"] for entry in generators if entry["name"] == "mlflow"]
    environment: dict[str, Any] = dict(literal.split("=", 1) for literal in literals)
    environment |= {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    environment |= {
        "MLFLOW_BACKEND_STORE_URI": "sqlite:////tmp/mlflow.db", "MLFLOW_ARTIFACTS_DESTINATION": "/tmp/artifacts",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": uuid.uuid4().hex, "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": uuid.uuid4().hex, "MLFLOW_AUTH_CONFIG_PATH": "/data/basic_auth.ini",
    }  # fmt: skip
    (data / "basic_auth.ini").write_text("[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:////tmp/auth.db\n")
    command = [*container["command"], *container["args"]]
    shown = images.run(
        "mlflow", "timeout", "600", "python", "-c", RUN_SERVER, *command, data=data, env=environment,
        options=["--workdir=/tmp"],
    )  # fmt: skip
    assert "without password: 401" in shown and "artifact: kept" in shown, shown
