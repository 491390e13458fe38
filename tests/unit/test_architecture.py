"""The promises that no single module can keep: what may import what, and that dvc.yaml names all that a stage uses."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from amlp.environment import QUIET
from amlp.params import Params

PROJECT = Path(__file__).parents[2]
LOCKS = ["requirements.lock", "requirements-train.lock", "requirements-pipeline.lock", "requirements-mlflow.lock"]
# What a module of the library may import at its top. The rest is slow to import or absent from a training image.
LIGHT = {"amlp", "numpy", "pandas", "PIL", "psutil", "pydantic", "scipy", "timm", "torch", "tqdm", "yaml"}
# Each layer may import those before it.
LAYERS = ["amlp", "components", "pipelines", "devtools"]
# The library's rooms from the top down. Each imports from those below it and from the ground floor, the single files of
# amlp/.
FLOORS = [
    "cli", "study", "reporting", "serving", "cluster", "promotion", "registry", "evaluation", "training", "models",
    "data", "method", "metrics",
]  # fmt: skip
ENTRY = {
    "ingest": "amlp.data.ingest",
    "validate": "amlp.data.validate",
    "preprocess": "amlp.data.preprocess",
    "pretrain": "amlp.training.pretrain",
    "finetune": "amlp.training.finetune",
    "scratch": "amlp.training.finetune",
    "evaluate": "amlp.evaluation.evaluate",
    "register": "amlp.registry.register",
    "report": "amlp.reporting.report",
}
# What a stage runs or reads without an import that can be seen.
UNSEEN = {
    # MLflow loads a registered model by the name of its loader module.
    "register": ["amlp.registry.encoder_model", "amlp.registry.segmenter_model"],
    "report": ["reporting/templates/report.html.j2"],
}
# What these hold cannot change a stage's result, and every stage would depend on them. params.py: DVC sees the values.
SHARED = {
    "amlp.data_params",
    "amlp.environment",
    "amlp.errors",
    "amlp.files",
    "amlp.layout",
    "amlp.logs",
    "amlp.params",
    "amlp.progress",
    "amlp.records",
    "amlp.s3",
    "amlp.sections",
    "amlp.storage",
}


def module_file(module: str) -> Path | None:
    path = PROJECT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def executed_on_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported, inside `if`, `try`, `with` and classes too."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        for part in ("body", "orelse", "finalbody"):
            yield from executed_on_import(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from executed_on_import(handler.body)


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def packages(file: Path, *, top: bool) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {name.split(".")[0] for name in imported(executed_on_import(tree.body) if top else ast.walk(tree))}


def modules_run(entry: str) -> set[str]:
    """All modules of the library that `entry` imports, at its top or in a function, directly or through others."""
    found: set[str] = set()
    waiting = [entry]
    while waiting:
        module = waiting.pop()
        file = module_file(module)
        if file is None or module in found or module in SHARED or not module.startswith("amlp."):
            continue
        found.add(module)
        waiting += imported(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    return {module for module in found if module_file(module).name != "__init__.py"}  # type: ignore[union-attr]


def code_of(stage: str) -> set[str]:
    """Files of the library that `stage` runs, seen from its folder."""
    unseen = UNSEEN.get(stage, [])
    modules = set().union(*(modules_run(entry) for entry in [ENTRY[stage], *unseen]))
    files = {f"{module.removeprefix('amlp.').replace('.', '/')}.py" for module in modules}
    files |= {name for name in unseen if "/" in name}
    # For the phantom it is `ingest.path`, and DVC refuses the same path twice.
    return files - {"data/phantom.py"} if stage == "ingest" else files


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def files(suffixes: set[str]) -> list[Path]:
    """Files that are committed, or would be."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    paths = (PROJECT / name for name in done.stdout.split("\0") if name and not name.startswith("workspaces/"))
    return [path for path in paths if path.is_file() and (path.suffix in suffixes or not suffixes)]


PIPELINE: dict[str, Any] = yaml.safe_load((PROJECT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES: dict[str, dict[str, Any]] = PIPELINE["stages"]


@pytest.mark.parametrize("layer", LAYERS)
def test_dependencies_point_one_way(layer: str) -> None:
    forbidden = {*LAYERS[LAYERS.index(layer) + 1 :], "benchmarks", "tests"}
    for file in (PROJECT / layer).rglob("*.py"):
        assert not packages(file, top=False) & forbidden, f"{file.relative_to(PROJECT)} imports a later layer"


def test_the_library_runs_without_kubeflow() -> None:
    for file in (PROJECT / "amlp").rglob("*.py"):
        assert not packages(file, top=False) & {"kfp", "kfp_kubernetes"}, (
            f"{file.relative_to(PROJECT)}: no place for kfp"
        )


def library(file: Path) -> set[str]:
    """Modules of the library that a file imports, at its top or in a function."""
    return {name for name in imported(ast.walk(ast.parse(file.read_text()))) if name.startswith("amlp.")}


def test_no_import_runs_up_a_floor() -> None:
    """The rooms stand on each other, so there is no circle either."""
    for file in (PROJECT / "amlp").rglob("*.py"):
        room, *inside = file.relative_to(PROJECT / "amlp").with_suffix("").parts
        if room in ("__init__", "__main__"):
            continue
        assert bool(inside) == (room in FLOORS), f"{file.relative_to(PROJECT)}: no room of the design"
        floor = FLOORS.index(room) if inside else len(FLOORS)
        above = {name for name in library(file) if name.split(".")[1] in FLOORS[:floor]}
        assert not above, f"{file.relative_to(PROJECT)} imports {sorted(above)} from above"


def test_the_launcher_needs_nothing_of_training() -> None:
    """A pipeline's image starts RayJobs without those libraries."""
    for file in (PROJECT / "amlp/cluster/rayjob").glob("*.py"):
        for name in library(file):
            assert name.startswith(("amlp.errors", "amlp.cluster.rayjob")), f"{file.relative_to(PROJECT)}: {name}"


def test_the_library_logs_and_commands_alone_print() -> None:
    for file in [*(PROJECT / "amlp").rglob("*.py"), *(PROJECT / "components").rglob("*.py")]:
        if file.parent.name == "cli" or file == PROJECT / "amlp/logs.py":
            continue
        calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        assert "print" not in map(ast.unparse, (node.func for node in calls)), f"{file.relative_to(PROJECT)} prints"


def test_only_the_client_factory_makes_s3_clients() -> None:
    for file in (PROJECT / "amlp").rglob("*.py"):
        if file != PROJECT / "amlp/s3.py":
            assert "boto3" not in packages(file, top=False), f"{file.relative_to(PROJECT)}: use amlp.storage"


def test_the_library_imports_only_light_packages_at_module_top() -> None:
    for file in (PROJECT / "amlp").rglob("*.py"):
        heavy = packages(file, top=True) - LIGHT - sys.stdlib_module_names
        assert not heavy, f"{file.relative_to(PROJECT)}: import {sorted(heavy)} inside the function that uses it"


def test_stages_are_those_of_the_design() -> None:
    assert list(STAGES) == list(ENTRY)


@pytest.mark.parametrize("stage", ENTRY)
def test_a_stage_depends_on_all_code_that_it_runs(stage: str) -> None:
    named = {dep.removeprefix("${code}/") for dep in STAGES[stage]["deps"] if dep.startswith("${code}/")}
    assert sorted(named) == sorted(code_of(stage))


def test_every_parameter_is_named_by_a_stage_and_every_name_is_a_parameter() -> None:
    known = set(leaves(Params().model_dump(by_alias=True)))
    used = {name for stage, entry in STAGES.items() if stage != "register" for name in entry.get("params", [])}
    assert used - known == set(), "no parameter has this name, or a stage names a whole section"
    # The register stage names every section, for lineage; its own are the only ones that it alone uses. The gate's are
    # for versions that are registered already.
    assert {name for name in known - used if not name.startswith(("register.", "gate."))} == set()
    assert set(STAGES["register"]["params"]) == set(Params().model_dump(by_alias=True))


def test_metrics_and_plots_are_written_by_a_stage() -> None:
    outs = [out for stage in STAGES.values() for out in stage["outs"]]
    plotted = [file for plot in PIPELINE["plots"] for settings in plot.values() for file in settings["y"]]
    for file in [*PIPELINE["metrics"], *plotted]:
        assert any(file.startswith(f"{out}/") for out in outs), file


def test_the_makefile_is_as_quiet_as_the_command() -> None:
    exported = re.findall(r"^export ([A-Z_]+) := (\S+)$", (PROJECT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {name: value for name, value in exported if name != "PATH"} == QUIET


def test_the_images_are_as_quiet_as_the_command() -> None:
    text = (PROJECT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    settings = dict(re.findall(r"([A-Z_]+)=(\S+)", " ".join(re.findall(r"^ENV .*$", text, flags=re.MULTILINE))))
    assert {name: settings.get(name) for name in QUIET} == QUIET


def test_every_image_that_is_named_is_a_target_of_the_dockerfile() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (PROJECT / "Dockerfile").read_text(), flags=re.MULTILINE))
    places = ["components/common.py", "k8s/base/runs/rayjob.yaml", "k8s/overlays/prod/rayjob.yaml"]
    named = set().union(*(re.findall(r"\bamlp-(\w+):\d", (PROJECT / place).read_text()) for place in places))
    assert named == {"train", "stages", "pipeline"} and named <= targets
    built = re.search(r"^IMAGES := (.*)$", (PROJECT / "Makefile").read_text(), flags=re.MULTILINE)
    assert built and set(built[1].split()) == named | {"mlflow"} <= targets


def requirements_of(lock: str) -> list[str]:
    """What pyproject.toml asks for in this lock."""
    whole = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    project, part = whole["project"], lock.removeprefix("requirements").removesuffix(".lock").removeprefix("-")
    if part in whole["dependency-groups"]:
        return list(whole["dependency-groups"][part])
    optional = chain.from_iterable(project["optional-dependencies"].values())
    return [*project["dependencies"], *(() if part else optional)]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_fits_the_project_and_names_no_address(lock: str) -> None:
    text = (PROJECT / lock).read_text(encoding="utf-8")
    pins = [Requirement(line.removesuffix(" \\")) for line in text.splitlines() if re.match(r"\w", line)]
    blocks = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in text and "--index" not in text and "--find-links" not in text

    for requirement in map(Requirement, requirements_of(lock)):
        versions = [pin.specifier for pin in pins if pin.name == requirement.name]
        assert versions, f"{requirement.name} is missing: make lock"
        for version in versions:
            assert requirement.specifier.contains(str(version).removeprefix("==")), f"{requirement}: make lock"


def pins(lock: str) -> set[str]:
    return set(re.findall(r"^(\w\S+==\S+)", (PROJECT / lock).read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("lock", "absent"),
    [
        ("requirements-train.lock", ("kfp", "kubernetes")),
        ("requirements-pipeline.lock", ("torch", "triton", "nvidia", "cuda", "ray=", "numpy", "pandas")),
        ("requirements-mlflow.lock", ("torch", "triton", "nvidia", "cuda", "ray=", "dvc", "kfp")),
    ],
)
def test_an_images_lock_has_the_same_versions_and_nothing_that_belongs_elsewhere(
    lock: str, absent: tuple[str, ...]
) -> None:
    assert pins(lock) < pins("requirements.lock")
    assert not [pin for pin in pins(lock) if pin.startswith(absent)]


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    pattern = re.compile(r"(?<![\w.$}])/(?:root|work|Users)/[\w.]|(?<![\w.$}])/home/(?!amlp)\w")
    for file in files({".py", ".md", ".yaml", ".yml", ".toml", ".lock", ".json", ".sh", ".html", ""} | {".ipynb"}):
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = pattern.search(text)
        assert not found, f"{file.relative_to(PROJECT)}: {found[0]}"


def test_continuous_integration_runs_each_python_that_the_project_names() -> None:
    text = (PROJECT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    [job] = yaml.safe_load(text)["jobs"].values()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = SpecifierSet(project["requires-python"])
    tried = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in named]
    assert job["strategy"]["matrix"]["python"] == tried
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
