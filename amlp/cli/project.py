"""The command that makes a project."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from amlp.cli.arguments import Commands, path


def add_to(commands: Commands) -> None:
    init = commands.command("init", _init, "make a project: a folder in which `dvc repro` runs the pipeline")
    init.add_argument("project", type=Path, metavar="PROJECT", help="folder to make, for example my-project")
    path(init, "--data", None, "folder of the images, with one folder for each class (default: generated images)")
    init.add_argument(
        "--recipe",
        metavar="NAME",
        help="a recipe of amlp, for example tiny (an unknown name lists all), or a YAML file with the parameters that "
        "differ from the defaults (default: the demo's values)",
    )


def _init(args: argparse.Namespace) -> None:
    from amlp.project import init_project

    params = init_project(args.project, data=args.data, recipe=args.recipe)
    # A name that begins with a dash would be taken for an option.
    folder = shlex.quote(f"./{args.project}" if str(args.project).startswith("-") else str(args.project))
    images = params.ingest.path if args.data else "generated (--data FOLDER takes yours)"
    print(f"Made {args.project}; images: {images}.\nRun: cd {folder} && dvc repro && amlp summary")
