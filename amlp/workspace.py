"""A folder with its own parameters and outputs, in which the same pipeline runs on other data.

The folder gets a `params.yaml` with every value (DVC compares values, so none may be left to a default) and the
project's `dvc.yaml` with the path to the code adapted. DVC drives it as it drives the project itself.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from amlp.errors import UserError
from amlp.files import write_text
from amlp.params import Params, load_params, parse_params

# The line of dvc.yaml that tells where the library is, seen from the folder of dvc.yaml.
_CODE_LINE = re.compile(r"^(\s*- code: )amlp\b", flags=re.MULTILINE)
_DIGEST_LINE = "# digest: "


def make_workspace(folder: Path, *, recipe: Path, data: Path | None, project: Path) -> Params:
    """Write `params.yaml` and `dvc.yaml` of a workspace.

    Args:
        folder: the workspace; must lie inside the project, for DVC keeps its outputs in the project's cache.
        recipe: YAML with the parameters that differ from the defaults.
        data: the source's images, which becomes `ingest.path`; None takes the recipe's, seen from the project.
        project: folder that holds `dvc.yaml` and `amlp/`.

    Raises:
        UserError: the recipe or a path does not fit, or the workspace's `params.yaml` was edited since it was written.
        ListedError: the recipe holds wrong values.
    """
    pipeline = project / "dvc.yaml"
    if not pipeline.is_file():
        raise UserError(f"{pipeline}: not found. Run in the project's folder, or pass --project.")
    if folder.resolve() == project.resolve() or not folder.resolve().is_relative_to(project.resolve()):
        raise UserError(f"{folder}: a workspace must be a folder below {project}, for example workspaces/mine.")
    values: dict[str, Any] = load_params(recipe).model_dump(by_alias=True)
    data = data or project / values["ingest"]["path"]
    if not data.exists():
        raise UserError(f"{data}: not found. --data names the folder that holds the images.")
    values["ingest"]["path"] = _seen_from(folder, data, project)
    params = parse_params(values, str(recipe))

    settings = folder / "params.yaml"
    _refuse_if_edited(settings)
    write_text(
        settings,
        f"# Written by `amlp workspace` from {recipe.name}; params.yaml of the project explains each value.\n"
        f"{_DIGEST_LINE}{params.digest()}\n" + yaml.safe_dump(values, sort_keys=False),
    )
    code = Path(os.path.relpath(project / "amlp", folder)).as_posix()
    text, found = _CODE_LINE.subn(rf"\g<1>{code}", pipeline.read_text(encoding="utf-8"))
    assert found == 1, f"{pipeline} holds {found} lines '- code: amlp'"
    write_text(folder / "dvc.yaml", text)
    print(f"Wrote {folder}: params.yaml, dvc.yaml. Run `dvc repro` there.")
    return params


def _seen_from(folder: Path, data: Path, project: Path) -> str:
    """A path inside the project stays relative, so that the workspace works in every clone."""
    if data.resolve().is_relative_to(project.resolve()):
        return Path(os.path.relpath(data.resolve(), folder.resolve())).as_posix()
    return str(data.resolve())


def _refuse_if_edited(settings: Path) -> None:
    if not settings.exists():
        return
    written = re.search(rf"^{_DIGEST_LINE}(\w+)$", settings.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if written is None or load_params(settings).digest() != written[1]:
        raise UserError(
            f"{settings}: was edited since it was written. Run `dvc repro` in {settings.parent} to use it as it is, "
            "or delete it to take the recipe again."
        )
