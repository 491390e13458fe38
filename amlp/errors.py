"""The errors that a user can cause and mend. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

import re
from collections.abc import Sequence


class UserError(Exception):
    """Bad input, configuration or state: the command prints the message and ends with exit code 2.

    The message names the file or key, the value, what was expected and what to do.
    """


class ListedError(UserError):
    """Several problems of the same input, reported at once.

    Args:
        headline: what failed, one line.
        problems: one line a problem, each naming its file or key.
        advice: what to do about it.
    """

    def __init__(self, headline: str, problems: Sequence[str], advice: str = "") -> None:
        self.problems = list(problems)
        lines = [headline, *(f"  - {problem}" for problem in self.problems)]
        if advice:
            lines.append(advice)
        super().__init__("\n".join(lines))


def without_credentials(text: str) -> str:
    """Hide user and password of the addresses in a text: http://user:password@host becomes http://***@host."""
    # No host starts with a slash, but the path in sqlite:////data/me@work/mlflow.db does.
    return re.sub(r"://[^\s/]\S*@", "://***@", text)
