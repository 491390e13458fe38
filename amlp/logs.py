"""Where log lines go: plain text as a command prints it, or JSON for pods.

The library logs and configures nothing. A command line calls `configure` once; so does each process of Ray.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from datetime import UTC, datetime

from amlp.environment import PIPELINE_RUN, TASK

# `json` for a JSON object per line, anything else for plain text; and the least level that is shown.
FORMAT, LEVEL = "AMLP_LOG", "AMLP_LOG_LEVEL"
# The packages of this project, as their loggers are named.
_ROOTS = ("amlp", "components", "pipelines")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _Console(logging.Handler):
    """Up to INFO to standard output, the rest to standard error; as `print` it meets the streams of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        # Errors of the stream are the command's: a closed pipe ends it.
        print(self.format(record), file=sys.stderr if record.levelno > logging.INFO else sys.stdout, flush=True)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "run": os.environ.get(PIPELINE_RUN),
            "task": os.environ.get(TASK),
            "error": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({key: value for key, value in line.items() if value is not None})


def configure() -> None:
    """Show the project's log lines as the environment says: AMLP_LOG=json, and AMLP_LOG_LEVEL (default: info).

    Called again, it replaces what it configured before.
    """
    handler = _Console()
    handler.setFormatter(_Json() if os.environ.get(FORMAT) == "json" else logging.Formatter("%(message)s"))
    for name in _ROOTS:
        root = logging.getLogger(name)
        root.handlers = [one for one in root.handlers if not isinstance(one, _Console)] + [handler]
        root.setLevel(_LEVELS.get(os.environ.get(LEVEL, ""), logging.INFO))
        # Handlers that other libraries give to Python's root logger would show each line again.
        root.propagate = False


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add -v and -q, which parse to `log_level`; absent where neither is given."""
    options = parser.add_mutually_exclusive_group()
    for flags, level, text in (
        (("-v", "--verbose"), "debug", "show details too"),
        (("-q", "--quiet"), "warning", "show warnings and errors alone"),
    ):
        options.add_argument(
            *flags, dest="log_level", action="store_const", const=level, default=argparse.SUPPRESS, help=text
        )


def configure_by(args: argparse.Namespace) -> None:
    """Do as the options say, here and in the processes that start from here."""
    if level := getattr(args, "log_level", ""):
        os.environ[LEVEL] = level
    configure()
