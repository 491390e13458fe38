"""The `amlp` command: one file per family of subcommands.

A stage's own module is imported only when its subcommand runs, so that `amlp --help` does not wait for torch, and after
the parameters are read, so that their mistakes are reported at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from amlp import logs
from amlp.cli import project, registry, serving, stages, study
from amlp.cli.arguments import Commands
from amlp.environment import quiet
from amlp.errors import UserError

logger = logging.getLogger(__name__)

# Commands of earlier versions, and what to run instead.
_RETIRED = {"workspace": "amlp init PROJECT [--data FOLDER] [--recipe NAME]"}
# What a bug report needs to name.
_NAMED_VERSIONS = ("torch", "timm", "ray", "mlflow", "dvc", "great-expectations", "kfp")


class _Version(argparse.Action):
    """Print the versions that matter, looked up only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="versions of amlp and of what it builds on")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        from amlp import __version__

        print(f"amlp {__version__}\npython {sys.version.split()[0]}")
        for name in _NAMED_VERSIONS:
            try:
                print(f"{name} {version(name)}")
            except PackageNotFoundError:
                print(f"{name} not installed")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="amlp",
        description="Pre-train, fine-tune, evaluate and register lesion segmenters.",
        epilog="`dvc repro` runs the stages in order and skips those whose inputs did not change; "
        "`amlp COMMAND --help` shows a command's paths.",
    )
    parser.add_argument("-V", "--version", action=_Version)
    logs.add_options(parser)
    commands = Commands(parser)
    for part in (stages, registry, serving, project, study):
        part.add_to(commands)
    return parser


@contextmanager
def _ending() -> Iterator[None]:
    """Let SIGTERM end a command with exit code 143 as Ctrl-C does, by an exception, so that temporary files go.

    Of both signals, as a study sends them to its stages, the second SIGTERM does not disturb the end.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python allows signal handlers in the main thread alone.
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 for what the user can repair, 130 when interrupted.

    A study of which a part failed returns 1, and so does a prediction when a file was unreadable.
    """
    words = sys.argv[1:] if argv is None else argv
    if words and (instead := _RETIRED.get(words[0])):
        print(f"amlp: `amlp {words[0]}` is no command any more; run `{instead}`", file=sys.stderr)
        return 2
    args = build_parser().parse_args(words)
    quiet()
    logs.configure_by(args)
    try:
        with _ending():
            code: int | None = args.run(args)
            sys.stdout.flush()
    except UserError as error:
        logger.error(f"amlp: {error}")
        return 2
    except KeyboardInterrupt:
        print("amlp: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough, such as `| head`. What is left must not fail again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code or 0
