from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from amlp.errors import UserError
from amlp.registry.runlog import flatten, valid_name
from amlp.registry.tracking import (
    child_run,
    connect,
    finished_run,
    import_mlflow,
    mlflow_uri,
    reopened_run,
    resolve_uri,
)


def test_sqlite_file_starts_from_the_root(tmp_path: Path) -> None:
    assert resolve_uri("sqlite:///mlflow.db", tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    assert resolve_uri(f"sqlite:///{tmp_path}/a.db", Path("/elsewhere")) == f"sqlite:///{tmp_path.resolve()}/a.db"
    assert resolve_uri("http://mlflow:5000", tmp_path) == "http://mlflow:5000"


def test_the_command_line_comes_before_the_variable_and_that_before_the_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert mlflow_uri() == "sqlite:///mlflow.db"
    assert mlflow_uri("http://inside:5000") == "http://inside:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert mlflow_uri("http://inside:5000") == mlflow_uri() == "http://localhost:5000"
    assert mlflow_uri("http://inside:5000", given="http://other:5000") == "http://other:5000"


def test_an_address_with_a_password_is_refused_and_not_repeated() -> None:
    with (
        pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD") as caught,
        connect("http://ana:hunter2@mlflow:5000"),
    ):
        pass
    assert "http://***@mlflow:5000" in str(caught.value) and "hunter2" not in str(caught.value)


def test_nested_values_become_dotted() -> None:
    nested = {"a": 1, "b": {"c": False, "d": {"e": "x", "f": None}}, "g": [1, 2]}
    assert flatten(nested) == {"a": 1, "b.c": False, "b.d.e": "x"}


@pytest.mark.parametrize("label", ["benign", "größe", "<script>alert(1)</script>", "../../etc", "a:b", ".", "x" * 400])
def test_any_label_makes_a_name_that_mlflow_takes(label: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(valid_name(f"train.{label}"))


def test_a_run_is_found_again_by_its_tags(tracking_uri: str) -> None:
    def open_study() -> str:
        with reopened_run(client, experiment="e", name="study", tags={"study": "s", "kind": "study"}) as parent:
            for outcome in ("fails", "ends well"):
                if finished_run(client, parent=parent, tags={"unit": "u"}):
                    continue
                with contextlib.suppress(OSError), child_run(client, parent=parent, name="u", tags=tags):
                    if outcome == "fails":
                        raise OSError
        return parent

    # A child has its parent's tag too, and must not be taken for it.
    tags = {"study": "s", "kind": "finetune", "unit": "u"}
    with connect(tracking_uri) as client:
        first, second = open_study(), open_study()
        assert first == second
        assert client.get_run(first).info.status == "FINISHED"
        # The failed run does not count, the finished one is not repeated.
        runs = client.search_runs([client.get_experiment_by_name("e").experiment_id])
        assert sorted(run.info.status for run in runs if run.info.run_id != first) == ["FAILED", "FINISHED"]


def test_files_go_through_the_server_unless_somebody_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to S3 names it as the server does, and hangs where that name is unknown."""
    names = ("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    import_mlflow()
    from mlflow import environment_variables

    for name in names:
        variable = getattr(environment_variables, name)
        assert variable.is_set() and variable.get() is False
    monkeypatch.setenv(names[0], "true")
    import_mlflow()
    assert getattr(environment_variables, names[0]).get() is True
