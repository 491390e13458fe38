"""What of a folder is finished, so that an interrupted `amlp predict` resumes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from amlp.errors import UserError
from amlp.files import write_text
from amlp.serving.outputs import JOURNAL, MASKS, OVERLAYS, SUMMARY, TABLE
from amlp.serving.sources import Source

_HALF = re.compile(r"\..*\.\d+\.tmp(\.\w+)?", re.DOTALL)


class Journal:
    """One line for each finished file, so that an interrupted run can resume; the first line identifies the run."""

    def __init__(self, path: Path, file: TextIO, done: Mapping[str, list[int | str]]) -> None:
        self.path = path
        self._file = file
        self._done = done

    @classmethod
    @contextmanager
    def open(cls, out: Path, key: Mapping[str, Any], *, force: bool) -> Iterator[Journal]:
        """Start a journal, or resume one of the same `key`.

        Raises:
            UserError: `out` holds other things, and `force` is off.
        """
        path = out / JOURNAL
        found = None if force else _lines(path)
        if found and found[0] == dict(key):
            # A file that could not be read may have been repaired.
            done = {line["file"]: line["stamp"] for line in found[1:] if not line["rows"][0]["error"]}
            lines = found
            _remove_halves(out)
        else:
            if not force and out.is_dir() and (held := sorted(one.name for one in out.iterdir())):
                what = "an unfinished run of other things" if found else ", ".join(held[:3])
                raise UserError(f"{out}: holds {what}; choose a new folder, or write into this one with --force.")
            try:
                out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{out}: can't be made ({error.strerror or error}); choose another folder.") from error
            for stale in (TABLE, SUMMARY):
                (out / stale).unlink(missing_ok=True)
            done, lines = {}, [dict(key)]
        # Whole lines alone, or the next line would be appended to a broken one.
        write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))
        with path.open("a") as file:
            yield cls(path, file, done)

    def finished(self, source: Source) -> bool:
        return self._done.get(source.name) == _stamp(source)

    def add(self, source: Source, rows: Sequence[Mapping[str, Any]]) -> None:
        self._file.write(json.dumps({"file": source.name, "stamp": _stamp(source), "rows": rows}) + "\n")
        self._file.flush()

    def rows(self, sources: Iterable[Source]) -> list[dict[str, Any]]:
        """All rows of the sources, in their order."""
        rows = {line["file"]: line["rows"] for line in _lines(self.path)[1:]}
        return [row for source in sources for row in rows[source.name]]


def _remove_halves(out: Path) -> None:
    """Remove what `atomic_file` left when it was killed."""
    for kind in (MASKS, OVERLAYS):
        for path in (out / kind).rglob(".*"):
            if _HALF.fullmatch(path.name) and path.is_file():
                path.unlink()


def _lines(path: Path) -> list[Any]:
    """Whole lines of a journal; the last one may be cut off."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def _stamp(source: Source) -> list[int | str]:
    """What distinguishes a file from one that was put in its place; zeros for one that is gone.

    With its mask's name, which another file may have taken over since, because it depends on the file's namesakes.
    """
    try:
        status = source.path.stat()
    except OSError:
        return [0, 0, source.mask]
    return [status.st_size, status.st_mtime_ns, source.mask]
