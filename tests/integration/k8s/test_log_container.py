"""The container of the Ray head that prints the job's log."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml


def test_the_log_container_prints_the_jobs_log(project: Path, tmp_path: Path):
    """From the file's appearance on, and from the new file when Ray's head starts again."""
    template = yaml.safe_load((project / "k8s/base/runs/rayjob.yaml").read_text(encoding="utf-8"))
    _, container = template["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    program = [*container["command"][:2], container["command"][2].replace("/tmp/ray", str(tmp_path))]
    if subprocess.run(["tail", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("the image's tail is GNU's, and this one is not")

    def session(name: str, text: str) -> None:
        logs = tmp_path / name / "logs"
        logs.mkdir(parents=True)
        (logs / "job-driver-amlp-1.log").write_text(text, encoding="utf-8")
        link = tmp_path / "new"
        link.symlink_to(tmp_path / name)
        link.rename(tmp_path / "session_latest")

    with (tmp_path / "printed").open("wb") as printed:
        running = subprocess.Popen(program, stdout=printed, stderr=subprocess.DEVNULL, start_new_session=True)
    try:

        def wait_for(text: str) -> None:
            for _ in range(300):
                if (tmp_path / "printed").read_text(encoding="utf-8") == text:
                    return
                time.sleep(0.1)
            raise AssertionError((tmp_path / "printed").read_text(encoding="utf-8"))

        session("one", "first\n")
        wait_for("first\n")
        with (tmp_path / "one/logs/job-driver-amlp-1.log").open("a", encoding="utf-8") as log:
            log.write("second\n")
        wait_for("first\nsecond\n")
        session("two", "again\n")
        wait_for("first\nsecond\nagain\n")
        running.terminate()
        assert running.wait(timeout=10) == 0
    finally:
        os.killpg(running.pid, signal.SIGKILL)
