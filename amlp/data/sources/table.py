"""A table beside the images: whose they are, what they show, and what else is kept of it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from amlp.data.sources.base import Problem
from amlp.data.sources.tree import Tree
from amlp.errors import UserError
from amlp.params import TableParams

# Found at the top of a folder, it needs no setting.
PATIENTS = "patients.csv"
_PATIENTS = TableParams(file=PATIENTS, key="file", patient="patient")
# Values of a kept column may not tell cases apart: that many cases for each value on average.
_CASES_A_VALUE = 2


@dataclass(frozen=True)
class Row:
    """What a table says of an image. line: where, for errors. patient: the id itself, not the pseudonym."""

    line: int
    patient: str = ""
    label: str = ""
    kept: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Table:
    """Rows by what names their image: its path, the path without suffix, its file's name, or that without suffix."""

    params: TableParams
    rows: dict[str, Row] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def row(self, image: str) -> Row | None:
        """Return what the table says of an image."""
        return next((self.rows[key] for key in _keys(image) if key in self.rows), None)

    def check(self, images: list[str]) -> list[str]:
        """Hold the table against the source's images: add problems, and return what somebody should know."""
        used = Counter(row.line for image in images if (row := self.row(image)))
        twice = {line for line, count in used.items() if count > 1}
        name = self.params.file
        self.problems += [
            Problem(name, f"line {line}: fits several images; write their paths from the source's folder.")
            for line in sorted(twice)
        ]
        if name == PATIENTS:
            # No path is opened by what this file says: it only labels images that the folder holds.
            self.problems += [
                Problem(name, f"line {row.line}: no such image; expected a path like 'benign/benign (1).png'.")
                for row in self.rows.values()
                if row.line not in used
            ]
        notes = []
        unused = sum(row.line not in used for row in self.rows.values())
        if unused and name != PATIENTS:
            notes.append(f"{unused} of {len(self.rows)} rows of the table name no image of this source")
        if self.params.patient:
            known = sum(bool(row and row.patient) for row in map(self.row, images))
            if known < len(images):
                notes.append(
                    f"{len(images) - known} of {len(images)} images have no patient in the table: each counts as a "
                    "patient of its own"
                )
        return notes


def _keys(image: str) -> Iterator[str]:
    path = PurePosixPath(image)
    yield image
    yield path.with_suffix("").as_posix()
    yield path.name
    yield path.stem


def table_of(tree: Tree, params: TableParams) -> Table | None:
    """Read the table of a source: `ingest.table.file`, or patients.csv where it is there; None without either.

    Raises:
        UserError: the file that `ingest.table.file` names is not there, or has not the columns that it should.
    """
    if params.file:
        if params.file not in tree.names:
            raise UserError(f"ingest.table.file: {tree.root / params.file}: not found; it is named from ingest.path.")
        return read_table(tree.read(params.file), params)
    others = [name for name in tree.names if name.lower() == PATIENTS and name != PATIENTS]
    if others:
        table = Table(_PATIENTS)
        table.problems.append(Problem(others[0], f"the table of patients is named {PATIENTS}; rename this file."))
        return table
    return read_table(tree.read(PATIENTS), _PATIENTS) if PATIENTS in tree.names else None


def read_table(data: bytes, params: TableParams) -> Table:
    """Read a table in CSV or, by its suffix, Parquet; what is wrong with it becomes problems that name the line."""
    table = Table(params)
    problem = _into(table, data)
    if problem:
        table.rows.clear()
        table.problems.append(Problem(params.file, problem))
    return table


def _into(table: Table, data: bytes) -> str | None:
    """Fill a table; return what is wrong with the file as a whole."""
    params = table.params
    columns = [params.key, *filter(None, (params.patient, params.label)), *params.keep]
    try:
        header, lines = (_parquet if params.file.lower().endswith(".parquet") else _csv)(data)
        if missing := [column for column in columns if column not in header]:
            # What stands there instead is not repeated: it may be a patient's name.
            separated = " Is the separator ';'? Expected a comma." if len(header) == 1 and ";" in header[0] else ""
            wanted = f"{' and '.join(columns)}" if len(columns) < 3 else ", ".join(columns)
            return f"line 1: expected the columns {wanted}; {', '.join(missing)} not found.{separated}"
        for number, line in lines:
            values = {column: (line.get(column) or "").strip() for column in columns}
            row = Row(
                number,
                values[params.patient] if params.patient else "",
                values[params.label] if params.label else "",
                {column: values[column] for column in params.keep},
            )
            key = values[params.key]
            first = table.rows.setdefault(key, row)
            if params.patient and first.patient != row.patient:
                reason = f"line {number}: another patient for an image named before."
                table.problems.append(Problem(params.file, reason))
            elif (first.label, first.kept) != (row.label, row.kept):
                table.problems.append(Problem(params.file, f"line {number}: other values for an image named before."))
    except (UnicodeDecodeError, csv.Error) as error:
        return f"no CSV file in UTF-8 ({error})."
    for column in params.keep:
        distinct = len({row.kept[column] for row in table.rows.values()})
        if len(table.rows) > 2 * _CASES_A_VALUE and distinct * _CASES_A_VALUE > len(table.rows):
            return (
                f"the column {column} has {distinct} values in {len(table.rows)} rows: it may identify people, and "
                "ingest.table.keep writes it into everything. Leave it out, or put it into classes."
            )
    return None


Lines = Iterator[tuple[int, Mapping[str, str | None]]]


def _csv(data: bytes) -> tuple[list[str], Lines]:
    reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    header = list(reader.fieldnames or ())

    def lines() -> Lines:
        for row in reader:
            yield reader.line_num, row

    return header, lines()


def _parquet(data: bytes) -> tuple[list[str], Lines]:
    import pandas as pd

    try:
        frame = pd.read_parquet(io.BytesIO(data))
    except Exception as error:  # pyarrow raises whatever a garbled file makes it stumble over.
        raise csv.Error(f"nor Parquet: {error}") from error
    text = frame.astype("string").astype(object).where(frame.notna(), None)
    return list(map(str, frame.columns)), enumerate(text.to_dict("records"), 1)
