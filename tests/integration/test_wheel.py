"""amlp as `pip install` brings it: the wheel in an empty environment, a project, the pipeline, the segmenter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from amlp import __version__

# What is asked of `amlp.load`, in the project's folder.
LOAD = """
import amlp, numpy, sys

image = numpy.random.default_rng(0).integers(0, 255, (50, 70), dtype=numpy.uint8)
models = [
    amlp.load("models/segmenter/segmenter.pt"),
    amlp.load("models:/amlp-segmenter@candidate", tracking_uri="sqlite:///mlflow.db"),
    amlp.load("models:/amlp-segmenter/1"),
]
masks = [model.predict([image, image[:30]]) for model in models]
probabilities = [model.probabilities([image])[0] for model in models]
for number in (1, 2):
    numpy.testing.assert_array_equal(probabilities[0], probabilities[number])
    numpy.testing.assert_array_equal(masks[0][0], masks[number][0])
print(*masks[0][0].shape, *masks[0][1].shape, masks[0][0].dtype)
"""


@dataclass(frozen=True)
class Installed:
    """An environment in `folder` that holds amlp from its wheel, not from this checkout."""

    folder: Path

    def run(self, *command: str, cwd: Path) -> str:
        """Run a program of the environment; returns what it printed."""
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        program = str(self.folder / "bin" / command[0])
        done = subprocess.run(
            [program, *command[1:]], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def dvc(self, *words: str, cwd: Path) -> str:
        return self.run("python", "-m", "dvc", *words, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An empty environment, the wheel, and a view of what the lock installed: that anew would be gigabytes."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    # A .pth file that it holds, such as the one of this checkout, is not followed.
    (packages / "locked.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--python"]
    subprocess.run([*command, str(folder / "bin/python"), str(wheel)], check=True)
    return Installed(folder)


def test_the_wheel_holds_the_library_and_the_pipeline_and_nothing_of_development(wheel: Path, project: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for name in ("dvc.yaml", "params.yaml", *(f"recipes/{file.name}" for file in project.glob("recipes/*.yaml"))):
            assert archive.read(f"amlp/template/{name}") == (project / name).read_bytes()
    assert {name.partition("/")[0] for name in names} == {
        "amlp", "components", "pipelines", f"amlp-{__version__}.dist-info",
    }  # fmt: skip
    held = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "amlp", "components", "pipelines"],
        cwd=project, check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = {name for name in names if not name.startswith(("amlp/template/", f"amlp-{__version__}"))}
    assert found == {name for name in held.stdout.splitlines() if (project / name).is_file()}


def test_a_project_of_the_wheel_runs_to_a_segmenter_that_segments(
    installed: Installed, tmp_path: Path, project: Path
) -> None:
    imported = installed.run(
        "python", "-c", "import sys, amlp; print(amlp.__file__, *sys.path, sep='\\n')", cwd=tmp_path
    )
    library, *searched = map(Path, imported.splitlines())
    assert library.is_relative_to(installed.folder) and project not in searched

    installed.run("amlp", "init", "mine", "--recipe", "tiny", cwd=tmp_path)
    mine = tmp_path / "mine"
    installed.dvc("repro", cwd=mine)
    assert installed.dvc("repro", cwd=mine).count("Running stage") == 0

    registration = json.loads((mine / "registration.json").read_text())
    assert [registration[kind]["version"] for kind in ("encoder", "segmenter")] == ["1", "1"]
    assert (mine / "mlflow.db").is_file()
    assert "amlp-segmenter" in (mine / "report.html").read_text(encoding="utf-8")
    shown = installed.run("amlp", "show", "candidate", cwd=mine)
    assert f"pip install amlp=={__version__}\n" in shown and "make setup" not in shown
    assert "amlp-segmenter version 1 (candidate)" in installed.run("amlp", "summary", cwd=mine)
    assert installed.run("python", "-c", LOAD, cwd=mine).split() == ["50", "70", "30", "70", "bool"]

    lock = (mine / "dvc.lock").read_text()
    assert str(tmp_path) not in lock and str(installed.folder) not in lock, "the lock is the same on every machine"
    requirements = mine / "requirements.txt"
    requirements.write_text(requirements.read_text().replace(f"amlp=={__version__}", "amlp==999"))
    changed = json.loads(installed.dvc("status", "--json", cwd=mine))
    assert set(changed) == set(yaml.safe_load(lock)["stages"]), "another version of amlp makes everything anew"
