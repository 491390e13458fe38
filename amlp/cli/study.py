"""The command that compares many trainings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from amlp.cli.arguments import RUN, Commands, path
from amlp.errors import UserError


def add_to(commands: Commands) -> None:
    study = commands.command(
        "study", _study, "compare variants, label fractions and seeds; resume where it was stopped"
    )
    study.add_argument("study", type=Path, metavar="STUDY", help="what to compare, for example studies/busi-cpu.yaml")
    path(study, "--shards", RUN.shards.path, "what preprocess wrote")
    path(study, "--ingest", RUN.ingest.path, "what ingest wrote")
    path(study, "--out", "study", "folder for everything that the study trains")
    path(study, "--page", None, "Markdown page to write (default: results.md in the study's folder)")
    study.add_argument("--jobs", type=int, default=1, metavar="N", help="units at a time (default: 1)")
    study.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="FILTER",
        help="run a part: variant=a,b or fraction=0.1 or seed=0; may be given several times",
    )
    study.add_argument(
        "--stale",
        choices=("stop", "rerun", "keep"),
        default="stop",
        help="finished units that other code or data made: report and stop, make again, or keep (default: stop)",
    )
    study.add_argument("--page-only", action="store_true", help="train nothing, write the page of what is finished")


def _study(args: argparse.Namespace) -> int:
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: expected 1 or more")
    import signal

    # As Ctrl-C: what the study started must not outlive it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from amlp.study.plan import load_study, make_plan

    study = load_study(args.study)
    plan, whole = make_plan(study, args.only), make_plan(study)
    from amlp.study.page import write_page
    from amlp.study.results import collect
    from amlp.study.run import run_study
    from amlp.study.store import Store

    store = Store(args.out.resolve())
    shards, ingest = args.shards.resolve(), args.ingest.resolve()
    failures: dict[str, str] = {}
    if not args.page_only:
        failures = run_study(study, plan, shards=shards, ingest=ingest, store=store, jobs=args.jobs, stale=args.stale)
    for title, reason in failures.items():
        print(f"amlp: {title}: {reason}", file=sys.stderr)
    if failures and len(failures) == len(plan.units):
        return 1
    page = args.page or args.out / "results.md"
    write_page(collect(study, whole, store, shards), page, shards=shards, ingest=ingest)
    print(f"Wrote {page}.")
    return 1 if failures else 0
