"""Component `validate`: what a pod that is gone would take with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kfp.dsl import Dataset, Metrics

from amlp.errors import ListedError
from components.validate import validate
from tests.support.ingest_folder import lesion, scene, write_ingest


def test_all_bad_cases_are_in_the_log_of_a_task_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = write_ingest(
        tmp_path / "cases", {f"case_{n:02d}": {"image": scene(n), "mask": lesion()} for n in range(30)}
    )
    outputs = {"validated": Dataset(uri=str(tmp_path / "validated")), "metrics": Metrics(uri=str(tmp_path / "metrics"))}
    with pytest.raises(ListedError) as refused:
        validate.python_func(
            params=json.dumps({"validate": {"min_side": 4096}}), cases=Dataset(uri=str(cases)), **outputs
        )
    log = capsys.readouterr().err
    assert all(f"case_{n:02d}" in log for n in range(30))
    message = str(refused.value)
    assert "30 of 30 cases" in message and "All of them are in the task's log" in message
    # Neither a file that nobody can open, nor a list without an end.
    assert "validated-failed" not in message and "and 10 more" in message
