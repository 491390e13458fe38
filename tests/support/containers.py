"""Containers of the project's images, as restricted as a cluster's `restricted` namespace makes them, and more."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Loopback is all the network there is, /tmp all that may be written.
RESTRICTED = ["--read-only", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp"]


def docker(*arguments: str) -> str:
    """Run `docker`; return what it or the container wrote to standard output."""
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    done = subprocess.run(["docker", *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Images:
    """What `make images` built.

    Args:
        pattern: name and tag, with `*` in the place of the Dockerfile's target.
    """

    pattern: str

    def name(self, target: str) -> str:
        return self.pattern.replace("*", target)

    def run(
        self,
        target: str,
        *command: str,
        data: Path | None = None,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> str:
        """Run a command in a restricted container and return what it printed.

        Args:
            data: folder of this machine that is /data in the container, and the folder that the command runs in.
            options: more for `docker run`.
        """
        words = ["run", "--rm", *RESTRICTED, *options]
        words += [f"--env={name}={value}" for name, value in (env or {}).items()]
        if data:
            words += [f"--volume={data}:/data", "--workdir=/data"]
        return docker(*words, self.name(target), *command)

    def config(self, target: str) -> dict[str, Any]:
        """What the image sets: user, environment, labels."""
        found: dict[str, Any] = json.loads(docker("image", "inspect", self.name(target)))[0]["Config"]
        return found

    def environment(self, target: str) -> dict[str, str]:
        return dict(entry.split("=", 1) for entry in self.config(target)["Env"])
