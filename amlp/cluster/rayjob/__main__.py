r"""Run a command as a RayJob.

python -m amlp.cluster.rayjob --template k8s/base/runs/rayjob.yaml --image IMAGE --run-id RUN --task pretrain \
        --workers 2 --gpus 1 -- python -m amlp.cluster.stage pretrain ...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from amlp.cluster.rayjob.errors import RayJobError
from amlp.cluster.rayjob.launcher import submit
from amlp.cluster.rayjob.request import Deadlines, JobRequest
from amlp.errors import UserError


def _pairs(words: Sequence[str]) -> dict[str, str]:
    pairs = dict(word.partition("=")[::2] for word in words)
    if not all(pairs) or len(pairs) < len(words):
        raise UserError(f"--node-selector {' '.join(words)}: expected KEY=VALUE.")
    return pairs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for what the user can mend, or the outcome's."""
    parser = argparse.ArgumentParser(prog="python -m amlp.cluster.rayjob", description="Run a command as a RayJob.")
    parser.add_argument("--template", type=Path, required=True, metavar="FILE", help="the RayJob to fill in")
    parser.add_argument("--run-id", required=True, help="the pipeline run's id")
    parser.add_argument("--task", required=True, help="the task's name in the pipeline")
    parser.add_argument("--image", required=True)
    parser.add_argument("--namespace", default="amlp")
    parser.add_argument("--owner", default="amlp", help="whom to ask about it; becomes a label")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0, help="of each worker")
    parser.add_argument("--node-selector", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--queue", default="", help="of Kueue")
    parser.add_argument("--deadline", type=float, default=Deadlines.total, metavar="SECONDS")
    parser.add_argument("--pre-running-deadline", type=float, default=Deadlines.pre_running, metavar="SECONDS")
    parser.add_argument("--host", default="", help="of the API server, without credentials (default: as kubectl)")
    parser.add_argument("entrypoint", nargs="+", metavar="-- COMMAND", help="what Ray runs")
    args = parser.parse_args(argv)
    try:
        request = JobRequest(
            run_id=args.run_id, task=args.task, entrypoint=args.entrypoint, image=args.image,
            namespace=args.namespace, owner=args.owner, workers=args.workers, gpus=args.gpus,
            node_selector=_pairs(args.node_selector), queue=args.queue,
            deadlines=Deadlines(total=args.deadline, pre_running=args.pre_running_deadline),
        )  # fmt: skip
        submit(template=args.template, request=request, host=args.host)
    except UserError as error:
        print(f"amlp: {error}", file=sys.stderr)
        return 2
    except RayJobError as error:
        print(f"amlp: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
