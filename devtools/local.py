"""`make pipeline-local`: the pipeline on one machine, with the real things around it.

Images go under version control by DVC and into an S3 server; the pipeline runs under `kfp.local` and records in an
MLflow server with accounts, whose database is PostgreSQL and whose files are in S3. Then the same again, from the
cache; then with one image changed. The first run's figures are compared with those of `dvc repro` on the same images.

The trainings run in their tasks' own processes: there is no Kubernetes here to launch a Ray cluster.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amlp import logs
from amlp.environment import PIPELINE_RUN, QUIET
from amlp.errors import UserError
from amlp.files import read_json
from amlp.layout import EvaluationFolder, RunFolder
from amlp.params import Params, PhantomParams, load_params, parse_params
from devtools.servers import MlflowServer, S3Server, mlflow_server, postgres, running, seaweedfs
from pipelines.arguments import DataSource, pipeline_arguments

PROJECT = Path(__file__).parents[1]
# What can change while images, parameters and code stay: who is champion, and how a run ends.
NEVER_CACHED = {"gate", "record-outcome"}
# kfp.local keeps its settings in globals, so each run gets a process.
_RUN = """
import json, sys, warnings
from kfp import local
from pipelines.training import training

warnings.filterwarnings("ignore", "You may be attemping", RuntimeWarning)  # no "python" in the image's name
runner, (root, cache, arguments) = local.SubprocessRunner(use_venv=False), sys.argv[1:]
local.init(runner, pipeline_root=root, enable_caching=True, cache_root=cache)
training(**json.loads(arguments))
"""


@dataclass(frozen=True)
class LocalKubeflow:
    """Runs the pipeline under `kfp.local`; runs of one share a cache.

    Args:
        folder: for outputs and the cache.
        environment: of the tasks, besides this process's own.
    """

    folder: Path
    environment: Mapping[str, str]

    def run(self, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Path]]:
        """Run the pipeline to its end.

        Args:
            arguments: of `pipelines.training.training`.

        Returns:
            The run's id, and the folders of the tasks that were executed, not taken from the cache.

        Raises:
            UserError: a task failed; the message is what was printed.
        """
        root = self.folder / "outputs"
        before, run_id = set(root.glob("*")), uuid.uuid4().hex
        log = self.folder / f"{run_id}.log"
        code, said = _finished(
            [sys.executable, "-c", _RUN, str(root), str(self.folder / "cache"), json.dumps(arguments)],
            log=log, cwd=self.folder,
            environment={"PYTHONPATH": str(PROJECT), **self.environment, PIPELINE_RUN: run_id},
        )  # fmt: skip
        if code:
            raise UserError(f"The pipeline failed; {log} ends with:\n{said[-4000:]}")
        # A task writes this file at its end.
        new = [file for folder in set(root.glob("*")) - before for file in folder.rglob("executor_output.json")]
        return run_id, {file.parent.name: file.parent for file in new}


def write_images(folder: Path, *, patients: int, seed: int) -> None:
    """Write pictures of the phantom in the layout of `source: busi`, with patients.csv.

    Args:
        folder: gets one folder for each class.
        patients: two pictures each.
        seed: of the pictures.
    """
    from amlp.data.phantom import generate
    from amlp.data.pictures import write_png

    lines = ["file,patient"]
    for case in generate(params=PhantomParams(patients=patients, images_per_patient=2, height=48, width=56), seed=seed):
        (folder / case.label).mkdir(parents=True, exist_ok=True)
        write_png(folder / case.label / f"{case.case_id}.png", case.image)
        write_png(folder / case.label / f"{case.case_id}_mask.png", case.mask)
        lines.append(f"{case.label}/{case.case_id}.png,{case.patient}")
    (folder / "patients.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def change_a_pixel(folder: Path) -> Path:
    """Change one image's bytes, and nothing else; returns its path."""
    from amlp.data.pictures import read_image, write_png

    path = next(file for file in sorted(folder.rglob("*.png")) if "_mask" not in file.name)
    image = read_image(path).copy()
    image[0, 0] ^= 1
    write_png(path, image)
    return path


@dataclass(frozen=True)
class DataRepository:
    """A git repository in `folder` whose images DVC keeps in a remote.

    Args:
        folder: of the repository.
        environment: the remote's credentials.
    """

    folder: Path
    environment: Mapping[str, str]

    @classmethod
    def create(cls, folder: Path, remote: str, environment: Mapping[str, str]) -> DataRepository:
        """Make a repository with a default remote: s3://bucket/prefix or a folder."""
        folder.mkdir(parents=True)
        made = cls(folder, environment)
        made.git("init", "--quiet", "--initial-branch=main")
        made.dvc("init", "--quiet")
        made.dvc("remote", "add", "--quiet", "--default", "store", remote)
        if endpoint := environment.get("AWS_ENDPOINT_URL_S3"):
            made.dvc("remote", "modify", "store", "endpointurl", endpoint)
        return made

    def git(self, *words: str) -> str:
        return _called(["git", *words], cwd=self.folder, environment=self.environment)

    def dvc(self, *words: str) -> str:
        return _called([sys.executable, "-m", "dvc", *words], cwd=self.folder, environment=self.environment)

    def commit(self, path: str, *, push: bool = True) -> str:
        """Put a folder as it is now under version control; return the commit."""
        self.dvc("add", "--quiet", path)
        if push:
            self.dvc("push", "--quiet")
        self.git("add", ".")
        who = ["-c", "user.name=amlp", "-c", "user.email=amlp@example.org", "-c", "commit.gpgsign=false"]
        self.git(*who, "commit", "--quiet", "--message", f"{path} as it is now")
        return self.git("rev-parse", "HEAD")


def _finished(command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a command to its end; return its exit code and what it printed.

    Where this process is interrupted first, the command ends with all processes that it started.
    """
    with running(command, log=log, cwd=cwd, environment={**os.environ, **QUIET, **environment}) as process:
        code = process.wait()
    return code, log.read_text(encoding="utf-8", errors="replace")


def _called(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        code, said = _finished(command, log=Path(folder, "log"), cwd=cwd, environment=environment)
    if code:
        raise UserError(f"`{' '.join(command)}` failed:\n{said[-4000:]}")
    return said.strip()


@contextmanager
def platform(folder: Path) -> Iterator[tuple[S3Server, MlflowServer]]:
    """Run S3, PostgreSQL and MLflow, with the buckets `dvc`, `mlflow` and `work`."""
    with seaweedfs(folder) as s3, postgres(folder) as database:
        for bucket in ("dvc", "mlflow", "work"):
            s3.client().create_bucket(Bucket=bucket)
        with mlflow_server(folder, database_uri=database.uri, s3=s3, bucket="mlflow") as mlflow:
            yield s3, mlflow


def _show(title: str) -> None:
    print(f"\n{title}", flush=True)


def _run(folder: Path, params: Params, images: Path | None) -> bool:
    """Do all of it below `folder`; returns whether everything was as it must be."""
    from amlp.registry.lineage import code_version

    commit, dirty = code_version(PROJECT)
    commit = f"{commit}-dirty" if dirty else commit
    _show("Servers: S3, PostgreSQL, MLflow")
    servers = folder / "servers"
    servers.mkdir()
    with platform(servers) as (s3, mlflow):
        print(f"MLflow is at {mlflow.address} while this runs")
        params = _recording(params, mlflow)
        environment = {**s3.environment, **mlflow.environment}

        _show("Images: under DVC, pushed to S3")
        if not images:
            images = folder / "drawn"
            write_images(images, patients=16, seed=params.seed)
        repository = DataRepository.create(folder / "images", "s3://dvc/store", environment)
        data = repository.folder / "data"
        shutil.copytree(images, data)
        first = repository.commit("data")
        print(f"commit {first}")

        kubeflow = LocalKubeflow(folder / "kubeflow", environment)
        kubeflow.folder.mkdir()

        def run(rev: str) -> tuple[str, dict[str, Path]]:
            source = DataSource(str(repository.folder), rev, "data")
            arguments = pipeline_arguments(params, git_commit=commit, data=source)
            run_id, tasks = kubeflow.run(arguments)
            print(f"run {run_id}: executed {', '.join(sorted(tasks)) or 'nothing'}", flush=True)
            return run_id, tasks

        _show("Pipeline, first run")
        _, tasks = run(first)
        found = read_json(EvaluationFolder(tasks["evaluate"] / "evaluation").metrics)
        registration = read_json(tasks["register"] / "registration")
        for kind in ("encoder", "segmenter"):
            print(f"registered {registration[kind]['name']} version {registration[kind]['version']}")

        _show("Pipeline, second run: nothing has changed")
        _, again = run(first)

        _show("`dvc repro` on the same images")
        # On the original: DVC does not look into another repository of its kind.
        expected = _dvc_repro(folder / "dvc", params, images)
        same, apart = same_figures(found, expected)
        print(f"{len(expected)} figures, at most {apart:.1e} apart; DSC {found['segmenter_dsc']:.4f}")

        changed = change_a_pixel(data)
        _show(f"Pipeline, third run: one pixel of {changed.relative_to(data)} has changed")
        _, third = run(repository.commit("data"))

    everything = {*kfp_stages(), "pull-data", "gate", *NEVER_CACHED}
    checks = {
        "the first run executed every task": set(tasks) == everything,
        "the second executed nothing but the look for a champion and the records of its end": set(again)
        == NEVER_CACHED,
        "the third executed every task": set(third) == everything,
        "the figures are those of `dvc repro`": same,
    }
    _show("Checks")
    for text, holds in checks.items():
        print(f"  {'yes' if holds else 'NO '}  {text}")
    return all(checks.values())


def same_figures(found: Mapping[str, float], expected: Mapping[str, float]) -> tuple[bool, float]:
    """Compare figures by name.

    Returns:
        Whether the names are the same and no figure is more than 1e-6 apart or NaN, and the largest difference of those
        that both have: NaN where one is.
    """
    apart = [abs(found[name] - expected[name]) for name in found.keys() & expected.keys()]
    # max alone passes over a NaN that is not the first.
    largest = math.nan if any(map(math.isnan, apart)) else max(apart, default=math.nan)
    return found.keys() == expected.keys() and largest <= 1e-6, largest


def kfp_stages() -> list[str]:
    """The stages of dvc.yaml that are tasks of their own on Kubeflow; `register` writes the report too."""
    import yaml

    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return [name for name in stages if name != "report"]


def _recording(params: Params, mlflow: MlflowServer) -> Params:
    values = params.model_dump(by_alias=True)
    values["register"]["tracking_uri"] = mlflow.address
    return parse_params(values, "recipe")


def _dvc_repro(workspace: Path, params: Params, data: Path) -> dict[str, float]:
    """Run the stages by DVC with the same parameters, recorded in a database of their own; return the metrics."""
    import yaml

    from amlp.project import init_project

    values = params.model_dump(by_alias=True)
    values["register"]["tracking_uri"] = "sqlite:///mlflow.db"
    # Not dvc.yaml beside the workspace: DVC takes each file of that name for a pipeline.
    recipe = workspace.with_name("recipe.yaml")
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    init_project(workspace, data=data, recipe=str(recipe))
    environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    _called([sys.executable, "-m", "dvc", "repro", "--quiet"], cwd=workspace, environment=environment)
    metrics: dict[str, float] = read_json(RunFolder(workspace).evaluation.metrics)
    return metrics


@contextmanager
def _temporary_files() -> Iterator[None]:
    """Give the processes that start from here a folder for temporary files, removed at the end: they may be killed."""
    with tempfile.TemporaryDirectory(prefix="amlp-", ignore_cleanup_errors=True) as folder:
        before = os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            os.environ.pop("TMPDIR")
            if before is not None:
                os.environ["TMPDIR"] = before


def main(argv: Sequence[str] | None = None) -> int:
    """Run it and return the exit code: 0 when every check held, 1 when not, 2 for a user's mistake, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m devtools.local", description=__doc__)
    parser.add_argument("--out", type=Path, default=PROJECT / "workspaces" / "local", metavar="PATH",
                        help="folder that gets all of it (default: workspaces/local)")  # fmt: skip
    parser.add_argument("--replace", action="store_true", help="remove that folder first, if it is there")
    parser.add_argument("--recipe", type=Path, default=PROJECT / "recipes" / "tiny.yaml", metavar="PATH")
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="images with masks, one folder for each class (default: generated)"
    )
    args = parser.parse_args(argv)
    logs.configure()
    # The servers are stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if args.out.exists() and not args.replace:
            raise UserError(f"{args.out}: exists; remove it by --replace, or name another folder by --out.")
        if args.data and not args.data.is_dir():
            raise UserError(f"{args.data}: not found. --data names the folder that holds the images.")
        if args.data and args.data.resolve().is_relative_to(args.out.resolve()):
            raise UserError(f"--data {args.data}: lies in {args.out}, which is replaced; move the images elsewhere.")
        params = load_params(args.recipe)
        if args.out.exists():
            shutil.rmtree(args.out)
        args.out.mkdir(parents=True)
        with _temporary_files():
            holds = _run(args.out.resolve(), params, args.data)
    except UserError as error:
        print(f"devtools.local: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("devtools.local: interrupted", file=sys.stderr)
        return 130
    print(f"\nAll files are in {args.out}.")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
