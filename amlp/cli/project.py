"""The command that makes a folder for other data."""

from __future__ import annotations

import argparse
from pathlib import Path

from amlp.cli.arguments import Commands, path


def add_to(commands: Commands) -> None:
    workspace = commands.command("workspace", _workspace, "make a folder in which the pipeline runs on other data")
    workspace.add_argument("folder", type=Path, metavar="FOLDER", help="where, for example workspaces/busi")
    workspace.add_argument(
        "--recipe", type=Path, required=True, metavar="FILE", help="parameters that differ from the defaults"
    )
    path(workspace, "--data", None, "the source's images; becomes ingest.path")
    path(workspace, "--project", ".", "folder that holds dvc.yaml and amlp/")


def _workspace(args: argparse.Namespace) -> None:
    from amlp.workspace import make_workspace

    make_workspace(args.folder, recipe=args.recipe, data=args.data, project=args.project)
