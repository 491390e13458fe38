"""`python -m pipelines compile`: write the training pipeline as the YAML that Kubeflow takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def _compile(args: argparse.Namespace) -> None:
    from kfp.compiler import Compiler

    from amlp.files import atomic_file
    from pipelines.training import training

    with atomic_file(args.out) as temporary:
        Compiler().compile(training, str(temporary))
    print(f"Wrote {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines", description="The pipelines for Kubeflow.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = commands.add_parser(
        "compile",
        help="write the training pipeline as YAML",
        description="Write the training pipeline as YAML. AMLP_STAGES_IMAGE and AMLP_PIPELINE_IMAGE name the images "
        "that its tasks run in.",
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("pipelines/training.yaml"),
        metavar="PATH",
        help="file to write (default: pipelines/training.yaml)",
    )
    command.set_defaults(run=_compile)
    args = parser.parse_args(argv)
    if args.out.suffix != ".yaml":
        command.error(f"--out: {args.out} does not end in .yaml, and Kubeflow takes no other file")
    args.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
