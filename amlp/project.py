"""A project: a folder in which `dvc repro` runs the pipeline on its own parameters and images.

It holds `params.yaml` with every value (DVC compares values, so none may be left to a default) and the pipeline,
`dvc.yaml`. DVC reruns a stage when the code that it runs has changed. For a project of an installed amlp that is the
line `amlp==VERSION` of `requirements.txt`, equal on every machine; for a project of a clone, the clone's files.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import amlp
from amlp.environment import QUIET, wheel_files
from amlp.errors import UserError
from amlp.files import write_text
from amlp.params import Params, load_params, parse_params

PARAMS, PIPELINE, REQUIREMENTS = "params.yaml", "dvc.yaml", "requirements.txt"
# A project of an installed amlp has this folder for images of its own, until `ingest.path` names another.
IMAGES = "images"
_DIGEST = "# digest: "
_SIGNED = re.compile(rf"\A(?:#.*\n)*?{_DIGEST}([0-9a-f]{{64}})\n", flags=re.MULTILINE)
# A line of params.yaml: the key, a value unless it is a section's head, and a comment.
_LINE = re.compile(r"(?P<key> *\w+:)(?P<value> [^#\s][^#]*?)?(?P<comment> +#.*)?")
_PIN = re.compile(r"^amlp(?:\[[^]]*\])?\s*==\s*([^\s;#\\]+)", flags=re.MULTILINE)
_GIT_IGNORES = """\
# what the pipeline writes; DVC keeps it
/data/
/models/
/evaluation/
/registration.json
/report.html
/study/

# state of unfinished training, MLflow, plots, environment
.amlp/
mlflow.db*
mlartifacts/
mlruns/
dvc_plots/
.venv/
"""
_DVC_IGNORES = """\
# Paths that DVC neither walks nor hashes.
.amlp
.venv
mlartifacts
mlruns
dvc_plots
/study
"""
_DVC_SETTINGS = "[core]\n    analytics = false\n    check_update = false\n"
# Images identify people, so they stay out of git.
_IMAGES_IGNORES = "*\n!.gitignore\n"


def recipe_names() -> list[str]:
    """Names of the recipes that come with amlp."""
    return sorted(file.stem for file in (_pipeline_files() / "recipes").glob("*.yaml"))


def init_project(folder: Path, *, data: Path | None = None, recipe: str | None = None) -> Params:
    """Make a project: params.yaml, dvc.yaml, .gitignore, .dvcignore, for an installed amlp also requirements.txt.

    A folder outside of any DVC repository becomes one, and a git repository unless it is inside one. Nothing is
    committed. The folder appears when everything in it is finished. A project that stands there already is written
    anew if its files are as this function wrote them; its outputs stay.

    Args:
        folder: the project; new, empty, or such a project.
        data: folder of the images, as `ingest.source: busi` reads it; None takes the generated images of the phantom.
        recipe: one of `recipe_names()`, or a YAML file with the parameters that differ from the defaults; None takes
            the defaults.

    Returns:
        The project's parameters.

    Raises:
        UserError: the folder holds other things or was edited, the recipe is unknown, it reads images and `data` is
            None, `data` is no folder, or git or DVC fails.
        ListedError: the recipe holds wrong values.
    """
    files, installed = _pipeline_files(), wheel_files() is not None
    folder = Path(os.path.abspath(folder))
    again = _is_project(folder)
    values, origin = _recipe_values(recipe, files, data)
    repository = next((one for one in (folder, *folder.parents) if (one / ".dvc").is_dir()), None)
    code = _seen_from(folder, _library(), repository)
    if data is not None:
        if not data.is_dir():
            raise UserError(
                f"{data}: {'no folder' if data.exists() else 'not found'}. --data names the images' folder."
            )
        # A recipe for other images says how they lie.
        source = values["ingest"]["source"]
        source = "busi" if source == "phantom" else source
        values["ingest"] |= {"source": source, "path": _seen_from(folder, data, repository)}
    else:
        values["ingest"] |= {"source": "phantom", "path": IMAGES if installed else f"{code}/data/phantom.py"}
    params = parse_params(values, origin)

    of = f"Written by `amlp init` of amlp {amlp.__version__}"
    pipeline = (files / PIPELINE).read_text(encoding="utf-8")
    settings = _filled((files / PARAMS).read_text(encoding="utf-8"), params)
    written = {
        PARAMS: _signed(f"What can be set. {of}, {origin}.", settings),
        PIPELINE: _signed(f"The pipeline. {of}.", _pinned(pipeline) if installed else _with_code(pipeline, code)),
        ".gitignore": _GIT_IGNORES,
        ".dvcignore": _DVC_IGNORES,
    }
    if installed:
        written[REQUIREMENTS] = _signed(f"What the stages run. {of}.", f"amlp=={amlp.__version__}\n")
    if params.ingest.path == IMAGES:
        written[f"{IMAGES}/.gitignore"] = _IMAGES_IGNORES
    if again:
        for name, text in written.items():
            if name in (PARAMS, PIPELINE, REQUIREMENTS) or not (folder / name).exists():
                write_text(folder / name, text)
    else:
        try:
            _build(folder, written, with_dvc=repository is None)
        except OSError as error:
            raise UserError(
                f"{folder}: can't be made ({error.strerror or error}). Name a folder in a place that you may write to."
            ) from error
    return params


def check_version(folder: Path) -> None:
    """Refuse to run in a project that is pinned to another version of amlp: DVC would take its results for that one's.

    Raises:
        UserError: `requirements.txt` in `folder` pins another version than this one.
    """
    file = folder / REQUIREMENTS
    pin = _PIN.search(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else None
    if pin and pin[1] != amlp.__version__:
        raise UserError(
            f"{file}: pins amlp=={pin[1]}, and amlp {amlp.__version__} runs. Install the pinned version with "
            f"`pip install -r {file}`, or write amlp=={amlp.__version__} there: then every stage runs again."
        )


def _library() -> Path:
    return Path(amlp.__file__).resolve().parent


def _pipeline_files() -> Path:
    """Return the folder of dvc.yaml, params.yaml and recipes/: a part of the wheel, or the clone."""
    folder = wheel_files() or _library().parent
    if not (folder / PIPELINE).is_file():
        raise UserError(f"{folder}: this copy of amlp lacks dvc.yaml; install amlp's wheel, or run it in a clone.")
    return folder


def _recipe_values(recipe: str | None, files: Path, data: Path | None) -> tuple[dict[str, Any], str]:
    """Return every parameter's value, and what to call the place that they come from."""
    if recipe is None:
        return Params().model_dump(by_alias=True), "with the default values"
    named = recipe in recipe_names()
    file = files / "recipes" / f"{recipe}.yaml" if named else Path(recipe)
    if not file.is_file():
        raise UserError(
            f"--recipe {recipe}: no recipe of amlp, and no such file. Expected {', '.join(recipe_names())}, or a YAML "
            "file."
        )
    values = load_params(file).model_dump(by_alias=True)
    if not named and data is None and values["ingest"]["source"] != "phantom":
        raise UserError(
            f"{file}: ingest.source is {values['ingest']['source']}. Name the images' folder with --data FOLDER, or "
            "set ingest.source: phantom for generated images."
        )
    return values, f"from the recipe {file.stem if named else file.name}"


def _seen_from(folder: Path, target: Path, repository: Path | None) -> str:
    """A path within the project's own repository stays relative, so that the project works in every clone."""
    target = target.resolve()
    if repository and target.is_relative_to(repository.resolve()):
        return Path(os.path.relpath(target, folder.resolve())).as_posix()
    return str(target)


def _is_project(folder: Path) -> bool:
    """Whether a project stands there that may be written anew; False where a new one may be made.

    Raises:
        UserError: neither may be done.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    present = [folder / name for name in (PARAMS, PIPELINE, REQUIREMENTS) if (folder / name).is_file()]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in present]
    signatures = [_SIGNED.match(text) for text in texts]
    if not present or not all(signatures):
        raise UserError(f"{folder}: exists, and `amlp init` did not make it. Name a new or an empty folder.")
    for file, text, signature in zip(present, texts, signatures, strict=True):
        assert signature
        if signature[1] != _digest(text[signature.end() :]):
            raise UserError(
                f"{file}: was edited since `amlp init` wrote it. Run `dvc repro` in {folder} to use it as it is, or "
                "delete it to have it written anew."
            )
    return True


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _signed(head: str, body: str) -> str:
    """Put lines before a file's text by which `_is_project` sees whether it was edited."""
    return f"# {head}\n{_DIGEST}{_digest(body)}\n{body}"


def _scalar(value: Any) -> str:
    """Write a value on one line, so that YAML 1.1 and 1.2 read it back."""
    text: str = yaml.safe_dump(value, width=math.inf, allow_unicode=True).removesuffix("\n").removesuffix("\n...")
    return json.dumps(value) if "\n" in text else text


def _filled(text: str, params: Params) -> str:
    """Put the values of `params` into the text of params.yaml; comments stay."""
    values = params.model_dump(by_alias=True)
    # The first line is about the demo.
    lines, sections = text.splitlines()[1:], [values]
    for number, line in enumerate(lines):
        if not (match := _LINE.fullmatch(line)):
            continue
        depth, key = match["key"].count(" ") // 2, match["key"].strip(" :")
        value = sections[depth][key]
        if isinstance(value, dict):
            sections[depth + 1 :] = [value]
        elif yaml.safe_load(match["value"]) != value:
            lines[number] = f"{match['key']} {_scalar(value)}{match['comment'] or ''}"
    filled = "\n".join(lines) + "\n"
    assert yaml.safe_load(filled) == values, "params.yaml names every value, each on a line"
    return filled


def _with_code(pipeline: str, code: str) -> str:
    """Return dvc.yaml, from its variables on, with another place of the library."""
    text, found = re.subn(r"(?m)^(  - code: )amlp\b", lambda match: match[1] + _scalar(code), pipeline)
    assert found == 1, "dvc.yaml names the library's place once"
    return text[text.index("vars:\n") :]


def _pinned(pipeline: str) -> str:
    """Return dvc.yaml, from its stages on, with requirements.txt in place of the library's files."""
    lines: list[str] = []
    for line in pipeline[pipeline.index("stages:\n") :].splitlines():
        pin = "      - ${code}" in line
        if not pin or f"      - {REQUIREMENTS}" != lines[-1]:
            lines.append(f"      - {REQUIREMENTS}" if pin else line)
    return "\n".join(lines) + "\n"


def _build(folder: Path, written: Mapping[str, str], *, with_dvc: bool) -> None:
    """Make the project beside its place, and put it there when it is finished."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    moved: list[Path] = []
    try:
        for name, text in written.items():
            write_text(temporary / name, text)
        if with_dvc:
            _init_repository(temporary)
        temporary.chmod(0o755)
        if not folder.exists():
            temporary.rename(folder)
            return
        # An empty folder stays the same one, for a shell may be in it.
        for path in temporary.iterdir():
            moved.append(path.rename(folder / path.name))
    except BaseException:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _init_repository(folder: Path) -> None:
    """Make a folder a DVC repository, and a git repository unless it is inside one."""
    inside_git = _ran(["git", "rev-parse", "--is-inside-work-tree"], folder, check=False).returncode == 0
    if not inside_git:
        _ran(["git", "init", "--quiet"], folder)
    _ran([sys.executable, "-m", "dvc", "init", "--quiet", *(["--subdir"] if inside_git else [])], folder)
    write_text(folder / ".dvc" / "config", _DVC_SETTINGS)
    # `dvc init` has put the empty file there.
    _ran(["git", "add", ".dvc/config"], folder)


def _ran(command: Sequence[str], folder: Path, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(command, cwd=folder, env={**QUIET, **os.environ}, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(f"{command[0]}: not found. Install it: a project is a git and DVC repository.") from error
    if check and done.returncode:
        raise UserError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
    return done
