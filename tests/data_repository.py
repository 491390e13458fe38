"""A git repository whose images DVC keeps in a remote, as a hospital's would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataRepository:
    """Git and DVC in `folder`; `environment` holds the remote's credentials."""

    folder: Path
    environment: Mapping[str, str]

    @classmethod
    def create(cls, folder: Path, remote: str, environment: Mapping[str, str]) -> DataRepository:
        folder.mkdir(parents=True)
        repository = cls(folder, environment)
        repository.run("git", "init", "--quiet", "--initial-branch=main")
        repository.dvc("init", "--quiet")
        repository.dvc("remote", "add", "--default", "store", remote)
        if endpoint := environment.get("AWS_ENDPOINT_URL_S3"):
            repository.dvc("remote", "modify", "store", "endpointurl", endpoint)
        return repository

    def run(self, *command: str) -> str:
        who = {f"GIT_{role}_{what}": text for role in ("AUTHOR", "COMMITTER")
               for what, text in (("NAME", "test"), ("EMAIL", "test@example.org"))}  # fmt: skip
        done = subprocess.run(
            command, cwd=self.folder, env={**os.environ, **self.environment, **who}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout.strip()

    def dvc(self, *words: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *words)

    def commit(self, path: str, *, push: bool = True) -> str:
        """Put the folder as it is now under version control; return the commit."""
        self.dvc("add", "--quiet", path)
        if push:
            self.dvc("push", "--quiet")
        self.run("git", "add", ".")
        self.run("git", "commit", "--quiet", "--message", "data")
        return self.run("git", "rev-parse", "HEAD")
