"""Read the time of a schedule before Kubeflow does, which wants six fields, seconds first, and takes five silently."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice, product

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
_NAMED = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
_EVERY = re.compile(r"@every (?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+)s)?")
# 29 February comes once in eight years at the rarest.
_YEARS = 9


def next_times(expression: str, after: datetime, count: int = 3) -> list[datetime]:
    """Return when a schedule starts its next runs, by the clock of `after`.

    Args:
        expression: of https://pkg.go.dev/github.com/robfig/cron in Kubeflow's form, with seconds first.
        after: later than this.
        count: how many; fewer where there are no more within nine years.

    Raises:
        UserError: it has five fields, which Kubeflow reads otherwise than crontab does, or a value is out of range.
    """
    if every := _EVERY.fullmatch(expression):
        if max(len(text or "") for text in every.groups()) > 6:
            raise UserError(f'schedule "{expression[:80]}": expected at most 999999 of each unit.')
        step = timedelta(hours=int(every["h"] or 0), minutes=int(every["m"] or 0), seconds=int(every["s"] or 0))
        if not step:
            raise UserError(f'schedule "{expression}": expected a time, such as @every 24h or @every 1h30m.')
        return [after + step * number for number in range(1, count + 1)]
    fields = _NAMED.get(expression, expression).split()
    if len(fields) != len(_FIELDS):
        hint = f' Did you mean "0 {expression}"?' if len(fields) == len(_FIELDS) - 1 else ""
        names = ", ".join(name for name, *_ in _FIELDS)
        raise UserError(f'schedule "{expression}": expected six fields, {names}; got {len(fields)}.{hint}')
    values = [
        set().union(*(_values(expression, text, part, *field) for part in text.split(",")))
        for text, field in zip(fields, _FIELDS, strict=True)
    ]
    if not (found := list(islice(_times(values, fields, after), count))):
        raise UserError(f'schedule "{expression}": there is no such day.')
    return found


def _times(values: list[set[int]], fields: list[str], after: datetime) -> Iterator[datetime]:
    seconds, minutes, hours, days, months, weekdays = values
    for ahead in range(366 * _YEARS):
        day = (after + timedelta(days=ahead)).replace(hour=0, minute=0, second=0, microsecond=0)
        # As every cron: where both kinds of day are named, either will do.
        named = [day.day in days, day.isoweekday() % 7 in weekdays]
        either = not any(fields[place][0] in "*?" for place in (3, 5))
        if day.month in months and (any(named) if either else all(named)):
            for hour, minute, second in product(sorted(hours), sorted(minutes), sorted(seconds)):
                time = day.replace(hour=hour, minute=minute, second=second)
                if time > after:
                    yield time


def _values(expression: str, text: str, part: str, name: str, least: int, most: int, words: list[str]) -> set[int]:
    """The numbers that one part of a field, such as `MON-FRI`, `*/2` or `3`, stands for."""
    span, slash, step = part.partition("/")
    low, dash, high = (str(least), "-", str(most)) if span in ("*", "?") else span.partition("-")
    first, last = (_number(word, least, words) for word in (low, high if dash else low))
    every = _number(step, 0, []) or 0
    if first is None or last is None or not least <= first <= last <= most or (slash and not every):
        raise UserError(
            f'schedule "{expression}": {name} {text!r}: expected numbers from {least} to {most}'
            f"{f' or {words[0]} to {words[-1]}' if words else ''}, ranges such as {least}-{most}, steps such as */2, "
            "lists with commas, or *."
        )
    # `5/10` is from 5 on.
    return set(range(first, (most if slash and not dash else last) + 1, every or 1))


def _number(word: str, least: int, words: list[str]) -> int | None:
    if word.upper() in words:
        return words.index(word.upper()) + least
    # No field has more digits, and Python refuses thousands of them.
    return int(word) if word.isdecimal() and len(word) < 9 else None
