"""What the commands' arguments have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from amlp import logs
from amlp.layout import RunFolder
from amlp.storage import is_remote

if TYPE_CHECKING:
    from amlp.params import Params

# The folder in which the command runs.
RUN = RunFolder(Path())
Run = Callable[[argparse.Namespace], int | None]


def path_or_s3(text: str) -> Path | str:
    """Take a local path, or a URI in S3, which a path would mangle."""
    return text if is_remote(text) else Path(text)


def read_params(args: argparse.Namespace) -> Params:
    """Read the file of `--params`; a project that it belongs to must be pinned to this version of amlp, or to none."""
    from amlp.params import load_params
    from amlp.project import check_version

    check_version(args.params.parent)
    return load_params(args.params)


class Commands:
    """The subcommands of `amlp`, as a parser takes them."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._added = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(self, name: str, run: Run, text: str) -> argparse.ArgumentParser:
        added = self._added.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        logs.add_options(added)
        return added

    def stage(self, name: str, run: Run, text: str) -> argparse.ArgumentParser:
        """Add a command that reads the parameters."""
        added = self.command(name, run, text)
        path(added, "--params", "params.yaml", "the parameters")
        return added


def path(to: argparse.ArgumentParser, flag: str, default: Path | str | None, text: str) -> None:
    """Add an option that takes a local path."""
    shown = f"{text} (default: {default})" if default else text
    to.add_argument(flag, type=Path, default=Path(default) if default else None, metavar="PATH", help=shown)


def uri(to: argparse.ArgumentParser, flag: str, default: Path | str | None, text: str) -> None:
    """Add an option that takes a local path or a URI in S3."""
    shown = f"{text}; local or s3://bucket/prefix" + (f" (default: {default})" if default else "")
    to.add_argument(flag, type=path_or_s3, default=Path(default) if default else None, metavar="URI", help=shown)
