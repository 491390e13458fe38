from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

import amlp
from amlp.errors import UserError
from amlp.params import Params
from amlp.registry.lineage import COMMIT_VARIABLE, code_version, collect_lineage, folder_md5, locked_md5

MD5 = "0123456789abcdef0123456789abcdef.dir"


@pytest.fixture(autouse=True)
def _no_stated_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("a = 1\n")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def write_lock(path: Path, output: str, md5: str) -> None:
    stage = {"cmd": "amlp ingest", "outs": [{"path": output, "hash": "md5", "md5": md5, "size": 3}]}
    path.write_text(yaml.safe_dump({"schema": "2.0", "stages": {"ingest": stage}}))


def test_folder_is_hashed_as_dvc_does(tmp_path: Path) -> None:
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB
    from dvc_objects.fs.local import LocalFileSystem

    folder = tmp_path / "ingest"
    for name in ("manifest.parquet", "images/b.png", "images/a.png", "images-2/a.png", "masks/ä.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() + b"\r\n")
    filesystem = LocalFileSystem()
    _, _, tree = build(HashFileDB(filesystem, str(tmp_path / "cache")), str(folder), filesystem, "md5", dry_run=True)
    assert folder_md5(folder) == tree.hash_info.value


def test_lock_tells_the_md5_of_an_output(tmp_path: Path) -> None:
    write_lock(tmp_path / "dvc.lock", "data/ingest", MD5)
    assert locked_md5(tmp_path / "dvc.lock", "data/ingest") == MD5
    assert locked_md5(tmp_path / "dvc.lock", "data/shards") is None
    assert locked_md5(tmp_path / "nowhere", "data/ingest") is None


def test_stated_md5_comes_before_lock_and_folder(tmp_path: Path) -> None:
    params = Params()
    (tmp_path / "data/ingest").mkdir(parents=True)
    (tmp_path / "data/ingest/manifest.parquet").write_bytes(b"rows")
    hashed = collect_lineage(params=params, root=tmp_path, test_hash="t")
    assert hashed.data_md5 == folder_md5(tmp_path / "data/ingest")
    write_lock(tmp_path / "dvc.lock", "data/ingest", MD5)
    locked = collect_lineage(params=params, root=tmp_path, test_hash="t")
    assert locked.data_md5 == MD5
    stated = collect_lineage(params=params, root=tmp_path, test_hash="t", data_md5="f" * 32)
    assert stated.data_md5 == "f" * 32
    assert stated.params_hash == params.digest()


@pytest.mark.parametrize("md5", ["", "f" * 31, "F" * 32, "f" * 32 + ".directory"])
def test_md5_of_another_form_is_refused(tmp_path: Path, md5: str) -> None:
    with pytest.raises(UserError, match="data_md5"):
        collect_lineage(params=Params(), root=tmp_path, test_hash="t", data_md5=md5)


def test_missing_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data/ingest"):
        collect_lineage(params=Params(), root=tmp_path, test_hash="t")


def test_commit_and_cleanness(repository: Path) -> None:
    assert code_version(repository) == (git(repository, "rev-parse", "HEAD"), False)


def test_what_the_pipeline_writes_is_no_change_of_code(repository: Path) -> None:
    (repository / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    (repository / "data").mkdir()
    (repository / "data/new.csv").write_text("1\n")
    (repository / "registration.json").write_text("{}\n")
    assert code_version(repository)[1] is False


@pytest.mark.parametrize("name", ["code.py", "new.py"])
def test_changed_and_new_code_is_a_change(repository: Path, name: str) -> None:
    (repository / name).write_text("a = 2\n")
    workspace = repository / "workspaces" / "own"
    workspace.mkdir(parents=True)
    assert code_version(repository)[1] is True
    assert code_version(workspace)[1] is True, "seen from a folder within the repository too"


def test_commit_can_be_stated(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, "abc123")
    assert code_version(repository) == ("abc123", False)
    monkeypatch.setenv(COMMIT_VARIABLE, "abc123-dirty")
    assert code_version(repository) == ("abc123", True)


def test_outside_of_a_repository_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(amlp, "__file__", str(tmp_path / "site-packages" / "amlp" / "__init__.py"))
    assert code_version(tmp_path) == ("unknown", None)


def test_code_of_an_installed_wheel_is_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/ingest").mkdir(parents=True)
    (tmp_path / "site-packages/amlp/template").mkdir(parents=True)

    def found() -> str:
        return collect_lineage(params=Params(), root=tmp_path, test_hash="t").requirement

    assert found() == "", "a clone's code is that of its commit"
    monkeypatch.setattr(amlp, "__file__", str(tmp_path / "site-packages/amlp/__init__.py"))
    assert found() == f"amlp=={amlp.__version__}"
    monkeypatch.setenv(COMMIT_VARIABLE, "abc123")
    assert found() == "", "an image states its commit"


def test_code_of_a_run_elsewhere_is_the_library_s(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(elsewhere.parent))
    monkeypatch.setattr(amlp, "__file__", str(repository / "code.py"))
    assert code_version(elsewhere) == (git(repository, "rev-parse", "HEAD"), False)
