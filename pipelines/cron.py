"""Check the time of a schedule before Kubeflow takes it: six fields, seconds first, and five without a word."""

from __future__ import annotations

import re

from amlp.errors import UserError

_MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
# Name, least, most, and names that stand for numbers from the least on.
_FIELDS: list[tuple[str, int, int, list[str]]] = [
    ("second", 0, 59, []),
    ("minute", 0, 59, []),
    ("hour", 0, 23, []),
    ("day of the month", 1, 31, []),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 6, _DAYS),
]
_DESCRIPTOR = re.compile(r"@(yearly|annually|monthly|weekly|daily|midnight|hourly|every (\d+(\.\d+)?(h|m|s|ms))+)")


def check_cron(expression: str) -> None:
    """Check an expression of https://pkg.go.dev/github.com/robfig/cron in Kubeflow's form, with seconds first.

    Raises:
        UserError: it has five fields, which Kubeflow reads otherwise than crontab does, or a value is out of range.
    """
    if _DESCRIPTOR.fullmatch(expression):
        return
    fields = expression.split()
    if len(fields) != len(_FIELDS):
        hint = f' Did you mean "0 {expression}"?' if len(fields) == len(_FIELDS) - 1 else ""
        names = ", ".join(name for name, *_ in _FIELDS)
        raise UserError(f'schedule "{expression}": expected six fields, {names}; got {len(fields)}.{hint}')
    for text, (name, least, most, words) in zip(fields, _FIELDS, strict=True):
        for part in text.split(","):
            if not _holds(part, least, most, words):
                raise UserError(
                    f'schedule "{expression}": {name} {text!r}: expected numbers from {least} to {most}'
                    f"{f' or {words[0]} to {words[-1]}' if words else ''}, ranges such as {least}-{most}, "
                    "steps such as */2, lists with commas, or *."
                )


def _holds(part: str, least: int, most: int, words: list[str]) -> bool:
    span, slash, step = part.partition("/")
    if slash and not (step.isdecimal() and int(step) > 0):
        return False
    if span in ("*", "?"):
        return True
    low, dash, high = span.partition("-")
    ends = [_number(word, least, words) for word in ((low, high) if dash else (low,))]
    return all(end is not None and least <= end <= most for end in ends) and (not dash or ends[0] <= ends[1])  # type: ignore[operator]


def _number(word: str, least: int, words: list[str]) -> int | None:
    if word.upper() in words:
        return words.index(word.upper()) + least
    return int(word) if word.isdecimal() else None
