"""Many small files as a few: uncompressed ZIP archives whose entries are read in place.

A data set of thousands of images is thousands of files, and a store or a pipeline that copies them one after the other
takes longer than the work on them. A path such as `data/pixels-00000.zip/images/a.png` names an entry of an archive;
every ZIP program opens them too.
"""

from __future__ import annotations

import functools
import struct
import zipfile
import zlib
from pathlib import Path
from types import TracebackType

from amlp.errors import UserError

# A store copies a file of this size in seconds, and a data set of a terabyte has a few thousand of them.
PACK_BYTES = 256 * 2**20
# The same bytes whenever they are written; ZIP's own first day.
_DATE = (1980, 1, 1, 0, 0, 0)
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class PackWriter:
    """Write files into archives `<name>-00000.zip`, `-00001`, … in the order of `add`: equal calls give equal bytes.

    Args:
        folder: that the archives lie in.
        name: what their names begin with.
        size: bytes after which the next archive begins.
    """

    def __init__(self, folder: Path, name: str, *, size: int = PACK_BYTES) -> None:
        self.folder, self.name, self.size = folder, name, size
        self._count, self._written = 0, 0
        self._archive: zipfile.ZipFile | None = None

    def add(self, entry: str, data: bytes) -> str:
        """Append a file; return its path below the folder, archive included.

        Args:
            entry: its name in the archive.
            data: its content.
        """
        if self._archive is not None and self._written + len(data) > self.size:
            self.close()
        if self._archive is None:
            self._archive = zipfile.ZipFile(self.folder / f"{self.name}-{self._count:05}.zip", "x")
        info = zipfile.ZipInfo(entry, _DATE)
        info.create_system, info.external_attr = 3, 0o100644 << 16
        self._archive.writestr(info, data)
        self._written += len(data)
        return f"{self.name}-{self._count:05}.zip/{entry}"

    def close(self) -> None:
        if self._archive is not None:
            self._archive.close()
            self._archive = None
            self._count, self._written = self._count + 1, 0

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_packed(path: Path) -> bytes | None:
    """Return the content of an archive's entry; None where no part of the path is an archive.

    Safe in threads and in forked processes: nothing is open between two calls.

    Args:
        path: of the archive, and of the entry in it.

    Raises:
        UserError: the archive is damaged, or has no such entry.
    """
    archive = next((one for one in path.parents if one.suffix == ".zip" and one.is_file()), None)
    if archive is None:
        return None
    try:
        state = archive.stat()
        inside = path.relative_to(archive).as_posix()
        entry = _entries(archive, state.st_size, state.st_mtime_ns).get(inside)
        if entry is None:
            raise UserError(f"{path}: no such file in {archive.name}.")
        start, size, checksum = entry
        if start < 0 or start + size > state.st_size:
            raise zipfile.BadZipFile(f"{path.name} would lie outside of it")
        with archive.open("rb") as file:
            file.seek(start)
            signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            named = file.read(name)
            file.seek(extra, 1)
            data = file.read(size)
    except OSError as error:
        # Of the disk, or of a place that no file has.
        raise UserError(
            f"{archive}: can't be read ({error.strerror or error}); look at its rights and its disk, or make it again."
        ) from error
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OverflowError) as error:
        raise UserError(f"{archive}: no archive that can be read ({error}); make it again.") from error
    if signature != b"PK\x03\x04" or len(data) != size or zlib.crc32(data) != checksum:
        raise UserError(f"{path}: damaged in {archive.name}: its checksum differs; make the archive again.")
    if inside not in (named.decode("utf-8", "replace"), named.decode("cp437")):
        raise UserError(f"{path}: damaged in {archive.name}: another name stands with it; make the archive again.")
    return data


@functools.lru_cache(maxsize=256)
def _entries(archive: Path, size: int, changed: int) -> dict[str, tuple[int, int, int]]:
    """Start of the header, bytes and checksum of each entry; size and time of change distinguish it from an update."""
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
                raise NotImplementedError(f"{info.filename} is compressed or encrypted")
        return {info.filename: (info.header_offset, info.file_size, info.CRC) for info in file.infolist()}
