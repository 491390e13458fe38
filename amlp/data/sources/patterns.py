"""Patterns of paths, such as `{patient}/{name}_mask*.png`: which files are meant, and what their names say.

A field in braces stands for any text without a slash, as much as possible from the left; `{part:(_[0-9]+)?}` for what
the regular expression after the colon matches; one without a name (`{:[0-9]+}`) is matched and forgotten. `*` stands
for any text without a slash, `**/` for any folders. The suffix counts in small and in capital letters; `.*` at the end
is the suffix of any picture.
"""

from __future__ import annotations

import re

from amlp.data.pictures import SUFFIXES
from amlp.errors import UserError

_NAME = re.compile(r"[a-z_][a-z0-9_]*")


class Pattern:
    """A compiled pattern.

    Args:
        text: the pattern.
        where: the parameter that holds it, for errors.

    Raises:
        UserError: the text is no pattern.
    """

    def __init__(self, text: str, where: str) -> None:
        self.text = text
        self.fields: tuple[str, ...] = ()
        body, suffix = _split_suffix(text)
        try:
            self._regex = re.compile(self._translated(body, where) + suffix, re.DOTALL)
        except re.error as error:
            raise UserError(f"{where}: {text!r} is no pattern ({error}).") from error

    def _translated(self, text: str, where: str) -> str:
        parts: list[str] = []
        position = 0
        while position < len(text):
            if text.startswith("**/", position):
                parts.append("(?:[^/]+/)*")
                position += 3
            elif text[position] == "*":
                parts.append("[^/]*")
                position += 1
            elif text[position] == "{":
                end = _closing(text, position)
                if end < 0:
                    raise UserError(f"{where}: {text!r} opens a brace and does not close it.")
                parts.append(self._field(text[position + 1 : end], where))
                position = end + 1
            else:
                parts.append(re.escape(text[position]))
                position += 1
        return "".join(parts)

    def _field(self, text: str, where: str) -> str:
        name, colon, regex = text.partition(":")
        if not name and colon:
            return f"(?:{regex})"
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{where}: {{{text}}}: expected a name of small letters, digits and _, such as {{patient}}."
            )
        if name in self.fields:
            return f"(?P={name})"
        self.fields += (name,)
        return f"(?P<{name}>{regex if colon else '[^/]+'})"

    def match(self, path: str) -> dict[str, str] | None:
        """Return the fields of a path (relative, posix), or None where it does not fit."""
        found = self._regex.fullmatch(path)
        return None if found is None else {name: text or "" for name, text in found.groupdict().items()}


def _split_suffix(text: str) -> tuple[str, str]:
    """Split off a suffix without fields, as a regular expression that takes capitals too."""
    body, dot, suffix = text.rpartition(".")
    if dot and suffix == "*":
        return body, "(?i:" + "|".join(re.escape(one) for one in SUFFIXES) + ")"
    if dot and re.fullmatch(r"[A-Za-z0-9]+", suffix):
        return body, rf"(?i:\.{suffix})"
    return text, ""


def _closing(text: str, start: int) -> int:
    """Return where the brace at `start` closes, or -1; a regular expression may hold braces of its own."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return -1
