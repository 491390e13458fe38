"""What happens around a component's function within its task: settings, further tries, and the error on record."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from amlp.environment import SETTINGS_FOLDER, quiet
from amlp.errors import UserError, is_transient
from components.contents import check_inputs, describe_outputs

# Seconds before the second and the third try.
PAUSES = (15.0, 60.0)


def run_task(module: str, name: str, inputs: Mapping[str, Any]) -> Any:
    """Call a component's function; a task calls this.

    Input artifacts are checked against what was written. What may pass (`amlp.errors.is_transient`) is tried again,
    for Kubeflow's own settings repeat a task only where its pod vanished. An error is written to the pipeline run's
    parent run in MLflow, with the task's name.

    Args:
        module: that defines the component.
        name: of its function.
        inputs: of the function.

    Raises:
        SystemExit: with code 2 after an error that the user can cause; its message is on standard error.
    """
    load_settings()
    quiet()
    task = name.replace("_", "-")
    try:
        function = getattr(import_module(module), name)
        check_inputs(function, inputs)
        result = tried(lambda: function(**inputs), task)
        describe_outputs(task, function, inputs)
        return result
    except Exception as error:
        _record(task, error)
        if isinstance(error, UserError):
            print(f"amlp: {error}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None
        raise


def tried(call: Callable[[], Any], task: str, *, sleep: Callable[[float], None] = time.sleep) -> Any:
    """Call, and call again after a pause where the error may pass.

    Raises:
        Exception: of the last try, or of the first whose error does not pass.
    """
    for pause in PAUSES:
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            print(f"{task}: {_said(error)}\nThis may pass: trying again in {pause:.0f} s.", file=sys.stderr, flush=True)
        sleep(pause)
    return call()


def load_settings(folder: Path = SETTINGS_FOLDER) -> None:
    """Take variables from the mounted ConfigMap and Secrets: one file each; a variable that is set already stays.

    Kubeflow's MLflow plugin sets variables of its own in a task's pod, so those come first.

    Args:
        folder: with a folder for each mounted object.
    """
    for file in sorted(folder.glob("*/*")):
        # Kubernetes keeps the files' versions beside them, under names with two dots.
        if re.fullmatch(r"[A-Z][A-Z0-9_]*", file.name) and file.is_file():
            os.environ.setdefault(file.name, file.read_text(encoding="utf-8").strip("\n"))


def _record(task: str, error: Exception) -> None:
    """Write the error to MLflow; where that fails too, the task's log has both."""
    from amlp.registry.outcome import record_error

    try:
        record_error(task=task, message=_said(error))
    except Exception as second:
        print(f"{task}: the error could not be written to MLflow: {_said(second)}", file=sys.stderr, flush=True)


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
