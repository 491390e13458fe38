"""The errors that a user can cause and repair. Everything else is a bug and keeps its traceback."""

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
        self.headline, self.problems, self.advice = headline, list(problems), advice
        lines = [headline, *(f"  - {problem}" for problem in self.problems)]
        if advice:
            lines.append(advice)
        super().__init__("\n".join(lines))


class WorkLost(Exception):
    """Work that ended by something outside of it, as by a kill or the loss of a worker; a further try may succeed."""


# Errors of the libraries that talk to servers, by module and class, so that none has to be imported.
_PASSING = {
    ("urllib3", "HTTPError"),
    ("requests", "ConnectionError"),
    ("requests", "Timeout"),
    ("botocore", "HTTPClientError"),
    ("botocore", "ConnectionError"),
    ("amlp", "HeadLost"),
    ("amlp", "ApiUnavailable"),
    ("amlp", "WorkLost"),
}
# Too many requests, and what servers say that start, stop or are busy.
_BUSY = {408, 429, 500, 502, 503, 504}


def is_transient(error: BaseException | None) -> bool:
    """Whether an error may pass by itself: a server that does not answer or is busy, also behind other errors."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
        if isinstance(error, (ConnectionError, TimeoutError)) or kinds & _PASSING or _status(error, kinds) in _BUSY:
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def _status(error: BaseException, kinds: set[tuple[str, str]]) -> int | None:
    """The HTTP status in an answer that one of the libraries raised."""
    if ("botocore", "ClientError") in kinds:
        answer = getattr(error, "response", {})
        return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    if ("mlflow", "RestException") in kinds:
        return int(error.get_http_status_code())  # type: ignore[attr-defined]
    if ("requests", "HTTPError") in kinds:
        return getattr(getattr(error, "response", None), "status_code", None)
    if ("kubernetes", "ApiException") in kinds:
        return getattr(error, "status", None)
    return None


def without_credentials(text: str) -> str:
    """Hide user and password of the addresses in a text: http://user:password@host becomes http://***@host."""
    # No host starts with a slash, but the path in sqlite:////data/me@work/mlflow.db does.
    return re.sub(r"://[^\s/]\S*@", "://***@", text)
