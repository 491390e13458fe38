"""What is in the images, what is not, and what reaches the builder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from amlp import __version__
from amlp.environment import QUIET
from tests.support.containers import Images, docker

pytestmark = [pytest.mark.image, pytest.mark.timeout(1800)]

TARGETS = ("train", "stages", "pipeline", "mlflow")
LOCKS = {
    "train": ("train",),
    "stages": ("train", "pipeline"),
    "pipeline": ("pipeline",),
    "mlflow": ("mlflow",),
}
# Also the markers' environment, for the locks name packages of other systems and Pythons too.
PACKAGES = """
import importlib.metadata, json, platform, re, sys
names = {re.sub("[-_.]+", "-", d.name).lower(): d.version for d in importlib.metadata.distributions()}
print(json.dumps({"names": names, "python": platform.python_version(), "machine": platform.machine()}))
"""
# Modules that were loaded from a file without bytecode beside it that fits.
UNCOMPILED = """
import importlib.util, os, sys
{}
for module in list(sys.modules.values()):
    file = getattr(module, "__file__", None) or ""
    if file.endswith(".py") and os.path.isfile(file):
        cached = importlib.util.cache_from_source(file)
        made_from = int.from_bytes(open(cached, "rb").read(12)[8:], "little") if os.path.exists(cached) else None
        if made_from != int(os.path.getmtime(file)):
            print(file)
"""
IMPORTS = {
    "train": "import amlp.cli, dvc.api, great_expectations, matplotlib.pyplot, mlflow, monai, ray.train, timm",
    "stages": "import amlp.cli, kfp.dsl.executor_main, torch",
    "pipeline": "import amlp.cluster.remote, dvc.api, kfp.kubernetes, kubernetes, mlflow, pipelines.training",
    "mlflow": "import boto3, mlflow.server.auth, psycopg2",
}
# What a build may leave: pip's settings and cache, credentials, locks, and what lies beside the code in a checkout.
LEFT = [
    "pip.conf", ".netrc", ".pypirc", ".git", ".env", ".dvc", ".cache", "build.txt", "torch.txt", "setuptools.txt",
    "params.yaml", "secrets", "id_rsa", "credentials", "requirements*.lock",
]  # fmt: skip
SECRET = re.compile(
    r"://[^/\s:@]+:[^/\s@]+@|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|(?:SECRET|PASSWORD|TOKEN|INDEX_URL)\w*=\S",
    flags=re.IGNORECASE,
)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_holds_what_its_locks_say_and_nothing_else(images: Images, target: str, project: Path) -> None:
    found = json.loads(images.run(target, "python", "-c", PACKAGES).splitlines()[-1])
    there = {
        "sys_platform": "linux",
        "platform_machine": found["machine"],
        "python_version": ".".join(found["python"].split(".")[:2]),
        "python_full_version": found["python"],
    }
    locked: dict[str, str] = {}
    for lock in LOCKS[target]:
        for line in (project / f"requirements-{lock}.lock").read_text(encoding="utf-8").splitlines():
            if re.match(r"\w", line):
                pin = Requirement(line.removesuffix(" \\"))
                if not pin.marker or pin.marker.evaluate(there):
                    locked[pin.name] = str(pin.specifier).removeprefix("==")
    if target != "mlflow":
        locked["amlp"] = __version__
    assert found["names"] == locked


def test_each_image_lacks_what_belongs_into_others(images: Images) -> None:
    """Said again without the locks, for they could be wrong too."""
    absent = {
        "train": ("kfp", "kubernetes"),
        "pipeline": ("torch", "triton", "ray", "nvidia", "numpy"),
        "mlflow": ("torch", "triton", "ray", "nvidia", "kfp", "amlp"),
    }
    for target, names in absent.items():
        code = f"import importlib.util; print([name for name in {names} if importlib.util.find_spec(name)])"
        assert images.run(target, "python", "-c", code).strip() == "[]", target
    assert "libcu" not in images.run("pipeline", "find", "/opt", "/usr", "-name", "libcu*.so*")


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_quiet_has_its_user_and_knows_its_commit(images: Images, target: str) -> None:
    config, environment = images.config(target), images.environment(target)
    assert config["User"] == "10001:10001"
    assert environment.items() >= QUIET.items()
    assert (environment["LANG"], environment["LC_ALL"]) == ("C.UTF-8", "C.UTF-8")
    commit = config["Labels"]["org.opencontainers.image.revision"]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    if target != "mlflow":
        assert environment["AMLP_GIT_COMMIT"] == commit
    shown = images.run(target, "bash", "-lc", "id -u; command -v python; python -c 'import os; print(os.getuid())'")
    assert shown.split() == ["10001", "/opt/venv/bin/python", "10001"], "a login shell, as KubeRay may use"


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_imported_was_compiled(images: Images, target: str) -> None:
    assert images.run(target, "python", "-c", UNCOMPILED.format(IMPORTS[target])).strip() == ""


@pytest.mark.parametrize("target", TARGETS)
def test_no_secret_is_in_an_image_or_its_history(images: Images, target: str) -> None:
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", images.name(target))
    settings = "\n".join(f"{name}={value}" for name, value in images.environment(target).items())
    assert not SECRET.search(history) and not SECRET.search(settings)

    # As root, who sees every folder; in the packages' own folders such names are theirs.
    names = " -o ".join(f"-name '{name}'" for name in LEFT)
    root = ["--user=0", "--cap-add=DAC_READ_SEARCH"]
    search = f"find / -xdev \\( -path /proc -o -path '*/site-packages/*' \\) -prune -o \\( {names} \\) -print"
    assert images.run(target, "sh", "-c", search, options=root).split() == []
    rest = images.run(target, "find", "/root", "/home", "/var/cache/pip", "-type", "f", options=root)
    assert {Path(file).name for file in rest.split()} <= {".bashrc", ".profile"}


def test_nothing_but_code_and_locks_reaches_the_builder(images: Images, tmp_path: Path, project: Path) -> None:
    context, out = tmp_path / "context", tmp_path / "out"
    context.mkdir()
    shutil.copy(project / ".dockerignore", context)
    kept = {"amlp/a.py", "amlp/templates/a.j2", "components/a.py", "pipelines/a.yaml", "pyproject.toml", "README.md",
            "LICENSE", "requirements.lock", "requirements-train.lock",
            "dvc.yaml", "params.yaml", "hatch_build.py", "recipes/tiny.yaml"}  # fmt: skip
    others = {".env", ".git/config", ".venv/bin/python", "data/a.png", "models/a.pt", "mlflow.db", "shared/a",
              "k8s/overlays/dev/secrets/s3.env", "workspaces/a/data/b", "amlp/__pycache__/a.pyc", ".dvc/config.local",
              "pip.conf", "tests/a.py"}  # fmt: skip
    for name in kept | others:
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text("x")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    docker("build", "--file", str(tmp_path / "Dockerfile"), "--output", str(out), str(context))
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == kept
