"""Archives of many small files, read in place."""

from __future__ import annotations

import random
import struct
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlp.data.packs import PackWriter, read_packed
from amlp.data.pictures import png_bytes, read_image
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


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """An archive cut, overwritten in places, with a single bit turned, or that is none."""
    data = bytearray(whole)
    # Where the table of contents begins, in which little damage does most.
    table = whole.index(b"PK\x01\x02") if chance.random() < 0.7 else 0
    match chance.choice(["cut", "bit", "bytes", "garbage", "zip64"]):
        case "cut":
            del data[chance.randrange(len(data)) :]
        case "bit":
            data[chance.randrange(table, len(data))] ^= 1 << chance.randrange(8)
        case "bytes":
            for _ in range(chance.randint(1, 12)):
                data[chance.randrange(table, len(data))] = chance.choice([0, 255, chance.randrange(256)])
        case "garbage":
            data = bytearray(chance.randbytes(chance.randrange(300)))
        case "zip64":
            odd = [chance.choice([0, 1, 2**31, 2**63, 2**64 - 1, len(whole)]) for _ in range(4)]
            end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, *odd)
            end += struct.pack("<4sLQL", b"PK\x06\x07", 0, len(whole) - 22, 1)
            data[-22:] = end + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    return bytes(data)


def test_a_damaged_archive_gives_the_right_bytes_or_is_named(tmp_path: Path) -> None:
    files = {"images/0.png": b"zero" * 9, "images/1.png": b"one" * 12, "images/é.png": b"accent" * 6}
    places = write(tmp_path / "folder", files)
    archive = tmp_path / "folder/pixels-00000.zip"
    whole, refused = archive.read_bytes(), 0
    for seed in range(3000):
        # Another file, so that nothing of the last one is remembered.
        archive.unlink()
        archive.write_bytes(damaged(whole, random.Random(seed)))
        for name, data in files.items():
            try:
                assert read_packed(tmp_path / "folder" / places[name]) == data, seed
            except UserError as error:
                refused += 1
                assert "pixels-00000.zip" in str(error), seed
    assert refused > 3000


@pytest.mark.parametrize(
    ("at", "put", "message"),
    [
        # Of the first entry in the table of contents: its flags, where it begins, its sizes, its name.
        (8, b"\x01\x00", "is compressed or encrypted"),
        (42, b"\xff\xff\xff\x7f", "would lie outside of it"),
        (20, b"\xff\xff\xff\x7f" * 2, "would lie outside of it"),
        (46, b"\xff", "can't decode byte 0xff"),
        (6, b"\xff", "zip file version"),
    ],
)
def test_what_is_wrong_with_an_archive_is_reported(tmp_path: Path, at: int, put: bytes, message: str) -> None:
    [place] = write(tmp_path / "folder", {"é.png": b"some bytes"}).values()
    archive = tmp_path / "folder/pixels-00000.zip"
    data = archive.read_bytes()
    start = data.index(b"PK\x01\x02") + at
    archive.write_bytes(data[:start] + put + data[start + len(put) :])
    with pytest.raises(UserError, match=r"make it again") as error:
        read_packed(tmp_path / "folder" / place)
    assert str(error.value).startswith(f"{archive}: ") and message in str(error.value)


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
