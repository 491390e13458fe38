"""Ctrl-C while the local platform starts: its servers end, and nothing stays behind outside of its folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import gettempdir

import psutil
import pytest

from devtools.servers import PostgresServer, S3Server


@pytest.mark.parametrize("moment", ["Servers: ", "MLflow is at "])
def test_an_interrupt_ends_the_servers_and_leaves_no_temporary_file(
    moment: str, tmp_path: Path, project: Path, s3_server: S3Server, postgres_server: PostgresServer
) -> None:
    temporary = tmp_path / "t"
    temporary.mkdir()
    # User postgres keeps its data there.
    for folder in (temporary, *(one for one in temporary.parents if one.is_relative_to(gettempdir()))):
        folder.chmod(folder.stat().st_mode | 0o011)
    temporary.chmod(0o777)
    command = [sys.executable, "-u", "-m", "devtools.local", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, cwd=project, env={**os.environ, "TMPDIR": str(temporary)}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(moment):
                break
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.terminate()
    assert (process.returncode, said) == (130, "devtools.local: interrupted\n")
    assert list(temporary.iterdir()) == []
    assert [one.pid for one in psutil.process_iter(["cwd"]) if (one.info["cwd"] or "").startswith(str(tmp_path))] == []
