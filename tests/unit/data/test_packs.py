"""Archives of many small files, read in place."""

from __future__ import annotations

import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlp.data.images import png_bytes, read_image
from amlp.data.packs import PackWriter, read_packed
from amlp.errors import UserError

NAMES = st.text(st.characters(whitelist_categories=("Ll", "Nd"), whitelist_characters="-_ é"), min_size=1, max_size=20)
FILES = st.dictionaries(NAMES.map(lambda name: f"images/{name}.png"), st.binary(max_size=200), min_size=1, max_size=20)


def write(folder: Path, files: dict[str, bytes], *, size: int = 2**20) -> dict[str, str]:
    folder.mkdir()
    with PackWriter(folder, "pixels", size=size) as packs:
        return {name: packs.add(name, data) for name, data in files.items()}


@given(FILES, st.integers(1, 500))
def test_what_was_packed_is_read_and_equal_calls_give_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], size: int
) -> None:
    root = tmp_path_factory.mktemp("packs")
    places = write(root / "one", files, size=size)
    assert {name: read_packed(root / "one" / place) for name, place in places.items()} == files
    assert write(root / "two", files, size=size) == places
    archives = sorted(path.name for path in (root / "one").iterdir())
    assert archives == sorted({place.partition("/")[0] for place in places.values()})
    for name in archives:
        assert (root / "one" / name).read_bytes() == (root / "two" / name).read_bytes()
        with zipfile.ZipFile(root / "one" / name) as archive:
            assert archive.testzip() is None
            entries = archive.infolist()
            # No more than asked for, but for a single file that is larger.
            assert sum(entry.file_size for entry in entries) <= size or len(entries) == 1


def test_a_picture_is_read_from_an_archive(tmp_path: Path) -> None:
    pixels = np.arange(30, dtype=np.uint8).reshape(5, 6)
    [place] = write(tmp_path / "folder", {"images/a.png": png_bytes(pixels)}).values()
    np.testing.assert_array_equal(read_image(tmp_path / "folder" / place), pixels)


def test_a_path_without_archive_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.zip").mkdir()
    (tmp_path / "a.zip/b.png").write_bytes(b"x")
    assert read_packed(tmp_path / "a.zip/b.png") is None
    assert read_packed(tmp_path / "absent.zip/b.png") is None
    with pytest.raises(UserError, match=r"absent.zip/b.png: no such file"):
        read_image(tmp_path / "absent.zip/b.png")


def test_mistakes_and_damage_are_named(tmp_path: Path) -> None:
    [place] = write(tmp_path / "folder", {"images/a.png": b"some bytes"}).values()
    archive = tmp_path / "folder/pixels-00000.zip"
    for other in ("images/b.png", "images/../images/a.png", "images"):
        with pytest.raises(UserError, match=r"no such file in pixels-00000.zip"):
            read_packed(archive / other)
    whole = archive.read_bytes()
    archive.write_bytes(whole.replace(b"some bytes", b"some bytez"))
    with pytest.raises(UserError, match=r"a.png: damaged in pixels-00000.zip"):
        read_packed(tmp_path / "folder" / place)
    archive.write_bytes(whole[:40])
    with pytest.raises(UserError, match=r"pixels-00000.zip: no archive that can be read"):
        read_packed(tmp_path / "folder" / place)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images/a.png", b"some bytes" * 100)
    with pytest.raises(UserError, match=r"images/a.png is compressed"):
        read_packed(tmp_path / "folder" / place)


def test_an_archive_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / f"{number}"
        [place] = write(folder, {"a": bytes(number + 1)}).values()
        target = tmp_path / "pixels-00000.zip"
        (folder / "pixels-00000.zip").replace(target)
        assert read_packed(tmp_path / place) == bytes(number + 1)


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    files = {f"{number}": bytes([number % 251]) * 5000 for number in range(200)}
    places = write(tmp_path / "folder", files, size=200_000)
    start = threading.Barrier(8)

    def read(part: int) -> bool:
        start.wait(30)
        return all(
            read_packed(tmp_path / "folder" / places[name]) == data for name, data in list(files.items())[part::8]
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
