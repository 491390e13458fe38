"""What happens around a component's function within its task: settings, further tries, and the error on record.

The function runs in a child process. So an error, a kill for lack of memory and the end of the whole pod have somebody
who outlives them and says what happened, which Kubeflow keeps of none of them. And a further try starts clean.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from amlp import logs
from amlp.environment import SETTINGS_FOLDER, STATE, TASK, quiet
from amlp.errors import UserError, is_transient
from components.contents import check_inputs, describe_outputs

# By name: run as a command, this module is called __main__.
logger = logging.getLogger("components.runtime")

# Seconds before the second and the third try.
PAUSES = (15.0, 60.0)
# Seconds for a child to end once it is asked to; Kubernetes gives the pod 30.
GRACE = 25.0
# Of this container, as the kernel shows it.
CGROUP = Path("/sys/fs/cgroup")
# How often the kernel killed a process of this container for lack of memory: cgroup 2 and 1.
_MEMORY_EVENTS = ("memory.events", "memory/memory.oom_control")
# Share of the container's memory at which the work is ended, where the kernel would end the whole container at 1.
FULL = 0.95
# Seconds between two looks at it.
_LOOK = 0.25


def main(argv: Sequence[str] | None = None) -> None:
    """Run a task, as the container's command: the component's module, its function, and Kubeflow's input as JSON."""
    module, name, given = sys.argv[1:] if argv is None else argv
    # kfp's decorators then leave functions as they are.
    os.environ["_KFP_RUNTIME"] = "true"
    from kfp.dsl.executor import Executor

    function = getattr(import_module(module), name)

    def call(**inputs: Any) -> Any:
        return run_task(module, name, inputs)

    # kfp asks the function what its arguments are, in both ways.
    call.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    call.__annotations__ = inspect.get_annotations(function)
    Executor(executor_input=json.loads(given), function_to_execute=call).execute()


@dataclass(frozen=True)
class Attempt:
    """How a child ended: `ok`; a user's `mistake`; what may `pass`; `killed`, also for lack of `memory`; or `error`."""

    end: Literal["ok", "mistake", "pass", "killed", "memory", "error"]
    message: str = ""
    # What the function returned, and the metadata of artifacts by argument.
    result: Any = None
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class _AskedToEnd(BaseException):
    """SIGTERM arrived."""


def run_task(module: str, name: str, inputs: Mapping[str, Any]) -> Any:
    """Call a component's function; a task calls this.

    Input artifacts are checked against what was written. What may pass (`amlp.errors.is_transient`), and a child that
    was killed, are tried again: Kubeflow's own settings repeat a task only where its pod vanished. Trainings resume
    from their last checkpoint. An error is written to the pipeline run's parent run in MLflow, with the task's name,
    and taken back when a later try succeeds.

    Args:
        module: that defines the component.
        name: of its function.
        inputs: of the function.

    Raises:
        SystemExit: with code 2 after an error that the user can cause, 143 after SIGTERM, else 1; standard error says
            why.
    """
    load_settings()
    quiet()
    task = os.environ[TASK] = name.replace("_", "-")
    logs.configure()
    with tempfile.TemporaryDirectory() as state, _asked_to_end():
        # Of trainings without a place in S3: for the next try in this pod.
        os.environ[STATE] = state
        try:
            ended = tried(lambda: attempt(module, name, inputs), task)
        except _AskedToEnd:
            said = "was asked to end (SIGTERM): its run was terminated, its pod deleted or its node drained."
            _record(task, Attempt("killed", said))
            raise SystemExit(128 + signal.SIGTERM) from None
    if ended.end == "ok":
        for argument, metadata in ended.metadata.items():
            inputs[argument].metadata.update(metadata)
        _record(task)
        return ended.result
    logger.error(f"amlp: {ended.message}")
    _record(task, ended)
    raise SystemExit(2 if ended.end == "mistake" else 1)


def tried(call: Callable[[], Attempt], task: str, *, sleep: Callable[[float], None] = time.sleep) -> Attempt:
    """Call, and call again after a pause where that may help; return the last attempt.

    Lack of memory is tried once more: something else may have taken it, but hardly twice.
    """
    short = False
    for pause in PAUSES:
        ended = call()
        if ended.end in ("ok", "mistake", "error") or (short and ended.end == "memory"):
            return ended
        short = ended.end == "memory"
        logger.warning(f"{task}: {ended.message}\nThis may pass: trying again in {pause:.0f} s.")
        sleep(pause)
    return call()


def attempt(module: str, name: str, inputs: Mapping[str, Any]) -> Attempt:
    """Call a component's function once, in a child process."""
    lacked = _lacks_of_memory()
    receiver, sender = Pipe(duplex=False)
    child = Process(target=_child, args=(module, name, inputs, sender))
    child.start()
    # The child's end alone keeps the pipe open, so a child that is killed ends the wait too.
    sender.close()
    ended: Attempt | None = None
    try:
        while not receiver.poll(_LOOK):
            if taken := nearly_full():
                return Attempt("memory", f"its process was ended at {taken} of memory; give the task more.")
        with suppress(EOFError):
            ended = receiver.recv()
        child.join()
    except _AskedToEnd:
        # It may have a RayJob to delete.
        child.terminate()
        child.join(GRACE)
        raise
    finally:
        receiver.close()
        child.kill()
        child.join()
    if ended is not None:
        return ended
    code = child.exitcode or 0
    if _lacks_of_memory() > lacked:
        return Attempt("memory", "its process was killed for lack of memory (OOMKilled); give the task more.")
    if code < 0:
        return Attempt("killed", f"its process was killed by {signal.Signals(-code).name}.")
    return Attempt("killed", f"its process ended with exit code {code}, and without a reason.")


def _child(module: str, name: str, inputs: Mapping[str, Any], sender: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Where processes are not forked, this one starts without.
    logs.configure()
    with suppress(OSError):
        # This process and not the one that watches it is ended when memory lacks.
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        function = getattr(import_module(module), name)
        check_inputs(function, inputs)
        result = function(**inputs)
        describe_outputs(name.replace("_", "-"), function, inputs)
        metadata = {key: value.metadata for key, value in inputs.items() if hasattr(value, "metadata")}
        # The class of a named tuple is known to this process alone; kfp takes any tuple.
        sender.send(Attempt("ok", "", tuple(result) if isinstance(result, tuple) else result, metadata))
    except Exception as error:
        message = _named(_said(error), inputs)
        if is_transient(error):
            sender.send(Attempt("pass", message))
        elif isinstance(error, UserError):
            sender.send(Attempt("mistake", message))
        else:
            logger.exception(message)
            sender.send(Attempt("error", message))


def _named(message: str, inputs: Mapping[str, Any]) -> str:
    """Call artifacts by their names: their folders are the pod's own, and gone with it."""
    paths = {value.path: name for name, value in inputs.items() if getattr(value, "path", None)}
    for path in sorted(paths, key=len, reverse=True):
        message = message.replace(path, paths[path])
    return message


@contextmanager
def _asked_to_end() -> Iterator[None]:
    """Raise at the first SIGTERM, and ignore more of them."""

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise _AskedToEnd

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _lacks_of_memory() -> int:
    for name in _MEMORY_EVENTS:
        with suppress(OSError):
            if found := re.search(r"^oom_kill (\d+)", (CGROUP / name).read_text(), re.MULTILINE):
                return int(found[1])
    return 0


def nearly_full() -> str:
    """Say how much memory is taken, where the kernel would soon kill all of this container's processes; else empty.

    With cgroup 2, Kubernetes (since 1.28) has the kernel kill them all at once, unless the node's setting
    `singleProcessOOMKill` is on. Then nobody would be left to say why, or to try again.
    """
    try:
        if (CGROUP / "memory.oom.group").read_text().strip() != "1":
            return ""
        limit = int((CGROUP / "memory.max").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # Without caches of files, which the kernel drops where memory is short.
        taken = int(stat["anon"]) + int(stat["shmem"])
    except (OSError, ValueError, KeyError):
        # Another cgroup, or no limit.
        return ""
    return f"{taken / 2**30:.1f} of {limit / 2**30:.1f} GiB" if taken >= FULL * limit else ""


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


def _record(task: str, failed: Attempt | None = None) -> None:
    """Write the error to MLflow, or that there is none any more; where that fails too, the task's log has both."""
    from amlp.registry.outcome import forget_error, record_error

    try:
        if failed is None:
            forget_error(task=task)
        else:
            record_error(task=task, message=failed.message, kind=failed.end)
    except Exception as second:
        what = "that it succeeded" if failed is None else "the error"
        logger.error(f"{task}: {what} could not be written to MLflow: {_said(second)}")


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
