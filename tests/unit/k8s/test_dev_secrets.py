"""The secrets of overlay dev."""

from __future__ import annotations

import configparser
import stat
import subprocess
import sys
from pathlib import Path

FILES = {"basic_auth.ini", "mlflow-client.env", "mlflow-server.env", "postgres.env", "s3.env"}


def run(project: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "k8s/dev_secrets.py", "--out", str(out)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_files_are_for_their_owner_alone(project: Path, tmp_path: Path):
    out = tmp_path / "secrets"
    assert run(project, out).returncode == 0
    assert texts(out).keys() == FILES
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}


def test_no_secret_is_printed(project: Path, tmp_path: Path):
    printed = run(project, tmp_path / "secrets").stdout
    lines = [line for text in texts(tmp_path / "secrets").values() for line in text.splitlines()]
    values = [line.partition("=")[2].strip() for line in lines]
    assert not [value for value in values if len(value) > 8 and value in printed]


def test_two_runs_make_different_secrets(project: Path, tmp_path: Path):
    run(project, tmp_path / "one")
    run(project, tmp_path / "two")
    one, two = texts(tmp_path / "one"), texts(tmp_path / "two")
    assert all(one[name] != two[name] for name in FILES)


def test_existing_secrets_stay(project: Path, tmp_path: Path):
    run(project, tmp_path)
    before = texts(tmp_path)
    done = run(project, tmp_path)
    assert done.returncode == 0
    assert texts(tmp_path) == before


def test_half_a_set_is_an_error(project: Path, tmp_path: Path):
    run(project, tmp_path)
    (tmp_path / "s3.env").unlink()
    before = texts(tmp_path)
    done = run(project, tmp_path)
    assert done.returncode == 1
    assert "not s3.env" in done.stderr
    assert texts(tmp_path) == before


def test_mlflow_can_read_its_configuration(project: Path, tmp_path: Path):
    """A percent sign would be an interpolation."""
    run(project, tmp_path)
    config = configparser.ConfigParser()
    config.read(tmp_path / "basic_auth.ini")
    assert config["mlflow"]["database_uri"].startswith("postgresql+psycopg2://mlflow:")
    assert "admin_password" not in config["mlflow"]
