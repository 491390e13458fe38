"""What happens around a component's function within its task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from amlp.errors import UserError
from components.common import stage
from components.runtime import PAUSES, load_settings, run_task, tried


@pytest.fixture
def task(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], Any]:
    """Runs a function as the task `find-lesions` of a pipeline run."""
    monkeypatch.setenv("AMLP_PIPELINE_RUN", "p1")
    monkeypatch.setenv("AMLP_RECORD", json.dumps({"tracking_uri": tracking_uri, "experiment": "amlp"}))
    monkeypatch.setattr("components.runtime.PAUSES", (0.0, 0.0))

    def run(function: Callable[..., Any], **inputs: Any) -> Any:
        module = types.ModuleType("some_tasks")
        module.find_lesions = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "some_tasks", module)
        return run_task("some_tasks", "find_lesions", inputs)

    return run


def parents(tracking_uri: str) -> list[Any]:
    client = MlflowClient(tracking_uri=tracking_uri)
    return list(client.search_runs([one.experiment_id for one in client.search_experiments()]))


def test_a_task_gets_its_inputs_and_returns_its_output(task: Any, tracking_uri: str) -> None:
    assert task(lambda a, b: a + b, a=1, b=2) == 3
    assert not parents(tracking_uri)


def test_a_users_error_is_recorded_and_has_its_exit_code(
    task: Any, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise UserError("images.csv: 3 columns; expected 4")

    with pytest.raises(SystemExit) as exited:
        task(refuse)
    assert exited.value.code == 2
    assert capsys.readouterr().err == "amlp: images.csv: 3 columns; expected 4\n"
    [run] = parents(tracking_uri)
    assert run.info.status == "FAILED" and run.data.tags["pipeline_task"] == "find-lesions"
    assert run.data.tags["pipeline_error"] == "find-lesions: images.csv: 3 columns; expected 4"


def test_a_bug_is_recorded_and_keeps_its_traceback(task: Any, tracking_uri: str) -> None:
    with pytest.raises(ZeroDivisionError):
        task(lambda: 1 // 0)
    [run] = parents(tracking_uri)
    assert run.data.tags["pipeline_error"].startswith("find-lesions: ZeroDivisionError: ")


def test_an_error_that_can_not_be_recorded_is_still_the_tasks(
    task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AMLP_RECORD", json.dumps({"tracking_uri": f"sqlite:///{tmp_path}/file/x.db"}))
    with pytest.raises(ZeroDivisionError):
        task(lambda: 1 // 0)
    assert "find-lesions: the error could not be written to MLflow: " in capsys.readouterr().err


def test_what_may_pass_is_tried_again(task: Any, tracking_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    tries: list[int] = []

    def flaky() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionResetError("by S3")
        return "done"

    assert task(flaky) == "done" and len(tries) == 3 and not parents(tracking_uri)
    assert capsys.readouterr().err.count("This may pass: trying again") == 2


def test_no_try_follows_the_last_and_none_a_users_error() -> None:
    slept: list[float] = []
    tries: list[int] = []

    def fail(error: Exception) -> Callable[[], None]:
        def call() -> None:
            tries.append(1)
            raise error

        return call

    with pytest.raises(TimeoutError):
        tried(fail(TimeoutError()), "x", sleep=slept.append)
    assert len(tries) == 1 + len(PAUSES) and slept == list(PAUSES)
    with pytest.raises(UserError):
        tried(fail(UserError("bad")), "x", sleep=slept.append)
    assert len(tries) == 2 + len(PAUSES) and len(slept) == len(PAUSES)


def test_mounted_settings_become_variables_unless_they_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kubernetes mounts them: links to a folder that changes as a whole."""
    versions = tmp_path / "amlp-settings" / "..2026_11_26"
    versions.mkdir(parents=True)
    for name, text in {"AMLP_TEST_ONE": "1\n", "AMLP_TEST_TWO": "2", "not-a-variable": "3"}.items():
        (versions / name).write_text(text)
        (versions.parent / name).symlink_to(f"..2026_11_26/{name}")
    monkeypatch.setenv("AMLP_TEST_TWO", "of the plugin")
    monkeypatch.setenv("AMLP_TEST_ONE", "")
    monkeypatch.delenv("AMLP_TEST_ONE")
    load_settings(tmp_path)
    assert os.environ["AMLP_TEST_ONE"] == "1" and os.environ["AMLP_TEST_TWO"] == "of the plugin"
    assert "not-a-variable" not in os.environ
    load_settings(tmp_path / "absent")


def test_what_is_sent_is_a_call(project: Path, tmp_path: Path) -> None:
    """And works in a process as kfp starts it, where the decorators of kfp are absent."""
    source = tmp_path / "shapes.py"
    source.write_text(
        "from components.common import stage\n\n"
        "def squared(x: int) -> int:\n    return x * x\n\n"
        '@stage\ndef area(side: int) -> int:\n    """Compute an area.\n\n    Args:\n        side: cm.\n    """\n'
        "    return squared(side)\n"
    )
    code = (
        "import shapes, json\n"
        "c = shapes.area.component_spec\n"
        "print(json.dumps([c.description, c.implementation.container.command[-1]]))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{project}{os.pathsep}{tmp_path}"}
    compiled = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    description, sent = json.loads(compiled.stdout)
    assert description == "Compute an area." and "squared" not in sent and len(sent) < 400
    run = f"{sent}\nprint(area(7))"
    environment["_KFP_RUNTIME"] = "true"
    done = subprocess.run([sys.executable, "-c", run], env=environment, capture_output=True, text=True)
    assert done.stdout == "49\n", done.stderr


def test_a_component_within_a_task_is_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_KFP_RUNTIME", "true")

    def function() -> None: ...

    assert stage(function) is function
