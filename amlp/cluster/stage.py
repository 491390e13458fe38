r"""What a RayJob runs: one training stage whose inputs, outputs and state are in S3.

    python -m amlp.cluster.stage pretrain --params s3://b/run/params.json --shards s3://b/run/shards \
        --state s3://b/state --out s3://b/run/encoder
    python -m amlp.cluster.stage finetune ... --encoder s3://b/run/encoder --out s3://b/run/segmenter
    python -m amlp.cluster.stage scratch ... --out s3://b/run/scratch

The same functions as `amlp pretrain` and `amlp finetune`. Started again, on another cluster too, it resumes from the
state. Local paths do as well where all nodes share them.

What starts it can't see why it failed, so it writes that to the URI that `--error` names. An error of the user there
ends it at once: KubeRay repeats a job whatever its exit code, and the same mistake needs no second try. What may pass
does not.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from amlp import logs
from amlp.environment import check_code, quiet
from amlp.errors import UserError, is_transient
from amlp.params import Params, parse_params
from amlp.storage import check_storage, pin, read, write

# By name: run as a command, this module is called __main__.
logger = logging.getLogger("amlp.cluster.stage")

STAGES = ("pretrain", "finetune", "scratch")


def read_params(uri: str) -> Params:
    """Read parameters as JSON.

    Raises:
        UserError: there are none, or they are wrong.
    """
    data = read(uri)
    if data is None:
        raise UserError(f"{uri}: not found; expected the parameters as JSON.")
    try:
        values = json.loads(data)
    except json.JSONDecodeError as error:
        raise UserError(f"{uri}: not JSON: {error}") from error
    return parse_params(values, uri)


@dataclass(frozen=True)
class StageError:
    """Why a stage failed: `kind` is `user`, `passing` (a server that is away, a lost worker) or `other`."""

    kind: Literal["user", "passing", "other"]
    message: str

    @classmethod
    def of(cls, error: Exception) -> StageError:
        by_user = isinstance(error, UserError)
        message = str(error) if by_user else f"{type(error).__name__}: {error}"
        # First: storage that does not answer is a user's error too, and no mistake.
        if is_transient(error):
            return cls("passing", message)
        return cls("user" if by_user else "other", message)

    @classmethod
    def read(cls, uri: str) -> StageError | None:
        """Return what a stage wrote to its `--error`, or None where it wrote nothing."""
        data = read(uri)
        return None if data is None else cls(**json.loads(data))


def run_stage(*, stage: str, params: Params, shards: str, encoder: str | None, out: str, state: str) -> None:
    """Check that everything can be reached, then run the stage; it fetches, trains, publishes and clears its state.

    Raises:
        UserError: the storage fails, an input is missing, or what the stage itself raises.
    """
    # Before the workers are taken for hours.
    check_storage(out)
    check_storage(state)
    pin(shards)
    if stage == "pretrain":
        from amlp.training.pretrain import pretrain

        pretrain(params=params, shards=shards, out=out, state=state)
    else:
        from amlp.training.finetune import finetune

        if encoder:
            pin(encoder)
        finetune(params=params, shards=shards, encoder=encoder, out=out, state=state)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 for what the user can repair."""
    parser = argparse.ArgumentParser(
        prog="python -m amlp.cluster.stage", description="Run one training stage with its files in S3."
    )
    parser.add_argument("stage", choices=STAGES)
    for flag, text in (
        ("--params", "the parameters, a JSON file"),
        ("--shards", "what preprocess wrote, published"),
        ("--out", "where the outputs go"),
        ("--state", "the checkpoints that a killed run resumes from"),
    ):
        parser.add_argument(flag, required=True, metavar="URI", help=f"{text}; s3://bucket/prefix or a shared path")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="that the cluster must have (default: 0)")
    parser.add_argument("--commit", default="", help="that the image must be built from (default: any)")
    parser.add_argument("--error", metavar="URI", help="where it writes why it failed, as JSON (default: nowhere)")
    parser.add_argument("--encoder", metavar="URI", help="what pretrain published; finetune alone takes it")
    args = parser.parse_args(argv)
    if (args.stage == "finetune") != bool(args.encoder):
        parser.error("finetune needs --encoder, and the other stages take none")
    quiet()
    logs.configure()
    try:
        if args.error and (before := StageError.read(args.error)) and before.kind == "user":
            raise UserError(before.message)
        if args.commit:
            check_code(args.commit)
        if args.gpus:
            from amlp.training.launch import check_gpus

            check_gpus(args.gpus)
        run_stage(
            stage=args.stage,
            params=read_params(args.params),
            shards=args.shards,
            encoder=args.encoder,
            out=args.out,
            state=args.state,
        )
    except Exception as error:
        found = StageError.of(error)
        if found.kind == "user":
            logger.error(f"amlp: {error}")
        else:
            logger.exception(f"amlp: {found.message}")
        if args.error:
            write(args.error, json.dumps(asdict(found)).encode())
        return 2 if found.kind == "user" else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
