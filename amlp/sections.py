"""Sections of files that a user writes, as typed, frozen objects; one error lists all mistakes of a file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amlp.errors import ListedError, UserError, without_credentials

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A mapping in a file that a user writes."""

    # Earlier names of its keys -> today's; an earlier one is refused with today's in the message.
    RENAMED: ClassVar[Mapping[str, str]] = {}

    # strict: "12" is no integer, and 1 is no boolean; an integer where a float is due is fine.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _valid_keys(model: type[Section]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _advice(model: type[Section], location: tuple[int | str, ...]) -> str:
    """Say what to write instead of the unknown key at `location`: its new name, or the most similar key."""
    section: Any = model
    for part in location[:-1]:
        # A mapping or list of sections has them as the last of its type's arguments.
        inner = get_args(section)
        section = inner[-1] if inner else _valid_keys(section).get(str(part))
    name, keys = str(location[-1]), list(_valid_keys(section))
    if name in section.RENAMED:
        return f"renamed to '{section.RENAMED[name]}', write that"
    close = difflib.get_close_matches(name, keys, n=1, cutoff=0.5)
    return f"unknown key; did you mean '{close[0]}'?" if close else f"unknown key; valid keys: {', '.join(keys)}"


def _problem(model: type[Section], item: ErrorDetails) -> str:
    """Write one of pydantic's errors as `key: what is wrong, got value`."""
    key = ".".join(str(part) for part in item["loc"]) or "parameters"
    if item["type"] == "extra_forbidden":
        return f"{key}: {_advice(model, item['loc'])}"
    reason = item["msg"].removeprefix("Value error, ")
    if item["type"] == "float_type" and re.fullmatch(r"[-+]?\d+e[-+]?\d+", str(item["input"])):
        # YAML 1.1 reads it as text.
        reason += " (write 1.0e-3, not 1e-3)"
    got = "" if not item["loc"] else f", got {without_credentials(repr(item['input']))}"[:120]
    return f"{key}: {reason}{got}"


def parse_section(model: type[S], values: Mapping[str, Any], origin: str) -> S:
    """Check and freeze the values of a file.

    Raises:
        ListedError: names every problem of `values` and `origin`, the file they came from.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_problem(model, item) for item in error.errors()]
        raise ListedError(f"{origin}: {len(problems)} problem(s)", problems, "Correct them and run again.") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file.

    Raises:
        UserError: it is no YAML mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of sections, got {type(values).__name__}.")
    return values
