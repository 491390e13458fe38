"""Numbers, text and tables in Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

NONE = "–"


def number(value: float, *, digits: int = 3, sign: bool = False) -> str:
    """A number as the page shows it, with a true minus sign; a dash for NaN."""
    if math.isnan(value):
        return NONE
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    return text.replace("-", "−")


def escape(text: str) -> str:
    """Make text mean itself in Markdown, in a table's cell too."""
    text = " ".join(text.split())
    text = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the cells are escaped already."""
    lines = [head, ["---"] * len(head), *rows]
    assert all(len(line) == len(head) for line in lines), "a row is shorter or longer than the head"
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
