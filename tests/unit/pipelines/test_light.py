"""What tasks without torch use works with what is in their image: the lock that it is made from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from amlp import __version__

# What is named on the command line can't be imported. Our modules import what they call in functions, so it is called
# here: clients are made, and connect to nothing yet.
CODE = """
import sys
from importlib.machinery import PathFinder

class Present(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in sys.argv[1:] else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Present
import amlp.cluster.rayjob, amlp.cluster.remote, amlp.storage, amlp.params
import pipelines.arguments, pipelines.training
import dvc.api, kfp.kubernetes, mlflow

amlp.storage.s3_client()
amlp.cluster.rayjob.connect("http://127.0.0.1:9")
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_light_tasks_need_nothing_that_their_image_lacks(project: Path) -> None:
    lock = (project / "requirements-pipeline.lock").read_text(encoding="utf-8")
    held = set(re.findall(r"^([\w-]+)==", lock, flags=re.MULTILINE)) | {"amlp"}
    installed = packages_distributions()
    absent = [package for package, owners in installed.items() if not {canonical(name) for name in owners} & held]
    assert {"torch", "ray", "numpy", "docker"} <= set(absent)
    done = subprocess.run(
        [sys.executable, "-c", CODE, *absent], cwd=project, env={**os.environ, "AWS_DEFAULT_REGION": "us-east-1"},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_light_tasks_have_an_image_of_their_own(tmp_path: Path, project: Path) -> None:
    # kfp reads a component's source, so it needs a file.
    (tmp_path / "task.py").write_text(
        "from components.common import light\n\n\n"
        "@light\ndef task() -> None:\n    pass\n\n\n"
        "print(task.component_spec.implementation.container.image)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "AMLP_PIPELINE_IMAGE"}
    environment["PYTHONPATH"] = str(project)
    for variables, image in (({}, f"amlp-pipeline:{__version__}"), ({"AMLP_PIPELINE_IMAGE": "x:1"}, "x:1")):
        done = subprocess.run(
            [sys.executable, str(tmp_path / "task.py")],
            env=environment | variables, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.split() == [image]
