from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from amlp.files import atomic_dir, atomic_file, read_json, sha256, write_json, write_text


class Crash(Exception):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_file_appears_whole_under_its_name(tmp_path: Path) -> None:
    target = tmp_path / "new" / "page.html"
    with atomic_file(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
        assert temporary.suffix == ".html"
    assert target.read_text() == "whole"
    assert names(target.parent) == ["page.html"]


def test_atomic_file_keeps_the_old_content_when_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    with pytest.raises(Crash), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise Crash
    assert target.read_text() == "old"
    assert names(tmp_path) == ["page.html"]


def test_atomic_dir_replaces_the_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "stale.txt").write_text("old")
    with atomic_dir(target) as temporary:
        (temporary / "fresh.txt").write_text("new")
        assert names(target) == ["stale.txt"]
    assert names(target) == ["fresh.txt"]
    assert names(tmp_path) == ["out"]
    # Others may read it: a shared folder of results is the usual case.
    assert target.stat().st_mode & 0o777 == 0o755


def test_atomic_dir_keeps_the_old_folder_when_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "kept.txt").write_text("old")
    with pytest.raises(Crash), atomic_dir(target) as temporary:
        (temporary / "half.txt").write_text("new")
        raise Crash
    assert names(target) == ["kept.txt"]
    assert names(tmp_path) == ["out"]


def test_json_is_strict_and_the_same_for_the_same_value(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1.5, "a": [None, "ü"]})
    write_json(tmp_path / "b.json", {"a": [None, "ü"], "b": 1.5})
    assert read_json(tmp_path / "a.json") == {"a": [None, "ü"], "b": 1.5}
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "c.json", {"dsc": float("nan")})
    assert names(tmp_path) == ["a.json", "b.json"]


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "speckle\n")
    assert sha256(tmp_path / "text") == hashlib.sha256(b"speckle\n").hexdigest()
