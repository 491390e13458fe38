"""What an artifact held when its task wrote it, so that its readers notice what Kubeflow's store lost.

Kubeflow takes a task from its cache without a look at the store, and hands an empty folder to those that read it.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from amlp.errors import UserError
from amlp.files import sha256

# Their metadata are figures on Kubeflow's page, and no task reads their files.
_CONTENTS = "contents"
_NOT_READ = ("system.Metrics", "system.HTML")


def check_inputs(function: Callable[..., Any], inputs: Mapping[str, Any]) -> None:
    """Check that each input artifact is what its task wrote; one without such metadata passes.

    Raises:
        UserError: files are missing or others; it names the artifact and the task to run anew.
    """
    from kfp.dsl.types.type_annotations import is_artifact_wrapped_in_Input

    for name, artifact in _artifacts(function, inputs, is_artifact_wrapped_in_Input):
        written = artifact.metadata.get(_CONTENTS)
        if written is None:
            continue
        task = str(written).partition(":")[0]
        found = contents(task, Path(artifact.path))
        if found != written:
            raise UserError(
                f"Kubeflow's store lost or changed {name} of task {task}: {artifact.uri} is {found!r}, and {written!r} "
                f"was written. Submit again with --fresh {task}: that task, and those that read it, run anew."
            )


def describe_outputs(task: str, function: Callable[..., Any], inputs: Mapping[str, Any]) -> None:
    """Write into each output artifact's metadata what it holds, and which task wrote it."""
    from kfp.dsl.types.type_annotations import is_artifact_wrapped_in_Output

    for _, artifact in _artifacts(function, inputs, is_artifact_wrapped_in_Output):
        if artifact.schema_title not in _NOT_READ:
            artifact.metadata[_CONTENTS] = contents(task, Path(artifact.path))


def contents(task: str, path: Path) -> str:
    """Say what is at a path, a file or a folder: which task wrote it, files, bytes, and 128 bits of a SHA-256.

    The hash is over the files' names and hashes. One text, since Kubeflow's record of a run holds it many times.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    total, digest, count = 0, hashlib.sha256(), 0
    for file in files:
        if not file.is_file():
            continue
        count, total = count + 1, total + file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
    return f"{task}: {count} {'file' if count == 1 else 'files'}, {total:,} bytes, {digest.hexdigest()[:32]}"


def _artifacts(
    function: Callable[..., Any], inputs: Mapping[str, Any], wanted: Callable[[Any], bool]
) -> Iterator[tuple[str, Any]]:
    for name, annotation in inspect.get_annotations(function).items():
        if name in inputs and wanted(annotation):
            yield name, inputs[name]
