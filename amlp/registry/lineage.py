"""Where a model comes from: data, code and parameters, as one record that every run and version carries."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

import amlp
from amlp.environment import COMMIT_VARIABLE, IMAGE, PIPELINE_RUN, wheel_files
from amlp.errors import UserError
from amlp.layout import RunFolder
from amlp.params import Params

# The pipeline writes these while it runs, so a difference in them says nothing about the code.
_OUTPUTS = ("dvc.lock", "data", "models", "evaluation", "registration.json", "report.html", "dvc_plots")
_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True)
class Lineage:
    """All that determines a model, less the encoder's version, which is known only once it is registered.

    `git_dirty` is None where it is not known; `data_md5` is DVC's hash of the ingest folder; `image` and `kubeflow_run`
    are empty outside of a pipeline. `requirement` is what installs the code, `amlp==VERSION`; it is empty where the
    code is that of `git_commit`.
    """

    data_md5: str
    git_commit: str
    git_dirty: bool | None
    params_hash: str
    test_hash: str
    amlp_version: str
    image: str = ""
    # Not `pipeline_run`, by which the one run of a pipeline in MLflow is found.
    kubeflow_run: str = ""
    requirement: str = ""

    def tags(self) -> dict[str, str]:
        """As text, for MLflow, without what is empty."""
        words = {True: "true", False: "false", None: "unknown"}
        values = {**asdict(self), "git_dirty": words[self.git_dirty]}
        return {key: value for key, value in values.items() if value}


def collect_lineage(*, params: Params, root: Path, test_hash: str, data_md5: str | None = None) -> Lineage:
    """Ask DVC, git and the parameters.

    Args:
        params: of this run.
        root: folder with the stages' outputs, and dvc.lock when DVC runs them.
        test_hash: of the frozen test split, as `evaluate` found it.
        data_md5: overrides what is found under `root`.

    Raises:
        UserError: `data_md5` is no MD5, or there is no ingest folder to hash.
    """
    if data_md5 is not None and not _MD5.fullmatch(data_md5):
        raise UserError(f"data_md5: {data_md5!r} is no MD5 as DVC writes it: 32 hex digits, '.dir' after a folder's.")
    commit, dirty = code_version(root)
    run = RunFolder(root)
    return Lineage(
        data_md5=data_md5 or locked_md5(run.lock, "data/ingest") or folder_md5(run.ingest.path),
        git_commit=commit,
        git_dirty=dirty,
        params_hash=params.digest(),
        test_hash=test_hash,
        amlp_version=amlp.__version__,
        image=os.environ.get(IMAGE, ""),
        kubeflow_run=os.environ.get(PIPELINE_RUN, ""),
        requirement=f"amlp=={amlp.__version__}" if wheel_files() and COMMIT_VARIABLE not in os.environ else "",
    )


def folder_in_repository(folder: Path) -> str:
    """Return a folder as seen from the root of its git repository; empty where it is that root, or in none."""
    return (_git(folder, "rev-parse", "--show-prefix") or "").rstrip("/")


def locked_md5(lock: Path, path: str) -> str | None:
    """Return the MD5 that dvc.lock holds for the output `path`, or None without such a lock or output.

    `dvc repro` writes the lock after each stage, so a later stage finds the earlier ones of its own run.
    """
    if not lock.is_file():
        return None
    stages = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages", {})
    outputs = (output for stage in stages.values() for output in stage.get("outs", []))
    return next((output["md5"] for output in outputs if output["path"] == path and "md5" in output), None)


def folder_md5(folder: Path) -> str:
    """Hash a folder just as DVC does, so that a run without DVC names the same data by the same hash.

    DVC's rule: the MD5 of a JSON list, ordered by path, of each file's MD5 and path; then ".dir".

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not found, so the data can't be named; run `amlp ingest` first.")
    entries = []
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            entries.append({"md5": digest, "relpath": path.relative_to(folder).as_posix()})
    text = json.dumps(entries, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def code_version(root: Path) -> tuple[str, bool | None]:
    """Return the git commit and whether files differ from it; ("unknown", None) where that is not known."""
    if stated := os.environ.get(COMMIT_VARIABLE):
        return stated.removesuffix("-dirty"), stated.endswith("-dirty")
    # A run outside of the repository, such as a Kubeflow task's, still uses the code of a checkout.
    for folder in (root, Path(amlp.__file__).parent):
        commit = _git(folder, "rev-parse", "--verify", "HEAD")
        if commit:
            outputs = [f":(exclude,top){name}" for name in _OUTPUTS]
            # What a workspace holds is made by the pipeline, less its parameters, which have a hash of their own.
            changes = _git(folder, "status", "--porcelain", "--", ":/", *outputs, ":(exclude,top)workspaces")
            return commit, None if changes is None else bool(changes)
    return "unknown", None


def _git(folder: Path, *arguments: str) -> str | None:
    # No lock: looking at a repository must not get in the way of the user's own git commands.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
