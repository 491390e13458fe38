"""JSON files as typed records: what one stage writes, another reads with the same fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from amlp.errors import UserError
from amlp.files import read_json

T = TypeVar("T")


def parse_record(values: Any, kind: type[T], origin: str) -> T:
    """Make a record of plain values; fields that it does not know are passed over.

    Args:
        values: as JSON holds them.
        kind: a dataclass.
        origin: names the values in an error.

    Raises:
        UserError: fields are missing or of another type; it names them.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'all'}: {one['msg']}" for one in error.errors()[:5])
        raise UserError(
            f"{origin}: not what amlp writes there ({wrong}). Run the stage that writes it again."
        ) from error


def read_record(file: Path, kind: type[T]) -> T:
    """Read a JSON file; see `parse_record`.

    Raises:
        UserError: there is no such file, it is no JSON, or fields are missing or of another type.
    """
    try:
        values = read_json(file)
    except FileNotFoundError as error:
        raise UserError(f"{file}: not found. Run the stage that writes it.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: no JSON ({error}). Run the stage that writes it again.") from error
    return parse_record(values, kind, str(file))
