from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from amlp import logs

LIBRARY = """
import logging, sys
from amlp import logs

logs.configure()
logger = logging.getLogger("amlp.data.ingest")
logger.debug("detail")
logger.info("wrote it")
logger.warning("one is odd")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("failed")
"""


def run(environment: dict[str, str], project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIBRARY], cwd=project, env=environment, capture_output=True, text=True, check=True
    )


def test_lines_are_plain_and_warnings_go_to_standard_error(project: Path) -> None:
    done = run({}, project)
    assert done.stdout == "wrote it\n"
    assert done.stderr.startswith("one is odd\nfailed\nTraceback")


def test_json_has_a_line_per_message_with_the_run_and_the_task(project: Path) -> None:
    done = run({"AMLP_LOG": "json", "AMLP_PIPELINE_RUN": "r1", "AMLP_TASK": "ingest"}, project)
    wrote, odd, failed = (json.loads(line) for line in [*done.stdout.splitlines(), *done.stderr.splitlines()])
    assert datetime.fromisoformat(wrote.pop("time")).tzinfo
    assert wrote == {
        "level": "info", "logger": "amlp.data.ingest", "message": "wrote it", "run": "r1", "task": "ingest",
    }  # fmt: skip
    assert (odd["level"], odd["message"]) == ("warning", "one is odd")
    assert failed["message"] == "failed" and "ZeroDivisionError" in failed["error"]


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", "detail\nwrote it\n"), ("warning", ""), ("nonsense", "wrote it\n")]
)
def test_the_environment_says_which_lines_are_shown(level: str, shown: str, project: Path) -> None:
    assert run({"AMLP_LOG_LEVEL": level}, project).stdout == shown


def test_a_line_is_shown_once_whatever_others_do_to_the_root_logger(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler()])
    logs.configure()
    logs.configure()
    logging.getLogger("amlp.anything").warning("once")
    assert capsys.readouterr() == ("", "once\n")
