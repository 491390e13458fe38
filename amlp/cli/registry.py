"""The commands around the registered versions: promote, rollback, history, show."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from amlp.cli.arguments import Commands, Run, path, read_params
from amlp.layout import RunFolder


def add_to(commands: Commands) -> None:
    def registry(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        added = commands.stage(name, run, text)
        path(added, "--root", ".", "folder that holds data/, models/ and, with SQLite, mlflow.db")
        added.add_argument(
            "--tracking-uri",
            metavar="URI",
            help="MLflow's address (default: MLFLOW_TRACKING_URI, else register.tracking_uri)",
        )
        return added

    def decides(to: argparse.ArgumentParser, *, reason: bool) -> None:
        to.add_argument("--reason", required=reason, default="", metavar="TEXT", help="why, for the history")
        to.add_argument("--actor", default="", help="who decides (default: MLflow's user, else this machine's)")
        to.add_argument("--dry-run", action="store_true", help="do all but write")

    promote = registry(
        "promote",
        _promote,
        "ask the gate about a version, and make it champion if it may be; exit code 10 when the champion is kept, 11 "
        "when the gate refuses, 12 when somebody was faster",
    )
    promote.add_argument("version", nargs="?", default="candidate", help="number or alias (default: candidate)")
    decides(promote, reason=False)

    rollback = registry("rollback", _rollback, "make an earlier champion the champion again")
    rollback.add_argument("--to", metavar="VERSION", help="(default: the previous champion)")
    decides(rollback, reason=True)

    history = registry("history", _history, "list all decisions; exit code 1 when one was lost or changed")
    history.add_argument("--json", action="store_true", help="for programs")

    show = registry("show", _show, "print where a version comes from, back to the bytes, and how to make it again")
    show.add_argument("version", nargs="?", default="champion", help="number or alias (default: champion)")


def _registry(args: argparse.Namespace) -> Any:
    """Connect to MLflow; the parameters name the place and the model."""
    from amlp.registry.tracking import connect, mlflow_uri, resolve_uri

    settings = read_params(args).register_
    return connect(resolve_uri(mlflow_uri(settings.tracking_uri, given=args.tracking_uri), args.root))


def _settled(client: Any, name: str) -> Any:
    """Read the history, and finish what was left undone; say what that was."""
    from mlflow import MlflowException

    from amlp.promotion.ledger import read_history, settle

    try:
        history, moved = settle(client, name)
    except MlflowException as error:
        if error.get_http_status_code() != 403:
            raise
        print("amlp: the aliases are not what the decisions say, and this account may not move them.", file=sys.stderr)
        history, moved = read_history(client, name), []
    for text in moved:
        print(f"Repaired: {text}.", file=sys.stderr)
    for text in history.troubles:
        print(f"amlp: {text}.", file=sys.stderr)
    return history


def _promote(args: argparse.Namespace) -> int:
    params = read_params(args)
    from amlp.promotion import promote
    from amlp.promotion.ledger import Overtaken

    name, run = params.register_.segmenter_name, RunFolder(args.root)
    with _registry(args) as client:
        _settled(client, name)
        candidate = promote.find_version(client, name, args.version)
        reference = promote.find_reference(client, candidate)
        print(f"{candidate} against {f'version {reference}' if reference else 'the model from scratch'}", flush=True)
        decision = promote.judge(
            client,
            candidate,
            reference=reference,
            params=params.gate,
            ingest=run.ingest.path,
            shards=run.shards.path,
            scratch=run.scratch.path,
        )
        print(f"{decision.outcome} ({decision.reason}): {decision.explanation}")
        for figure in decision.classes:
            print(f"  {figure.label}: {figure}")
        if args.dry_run:
            print("Nothing was written.")
        else:
            try:
                promote.conclude(
                    client, candidate, decision.as_dict(), reference=reference, reason=args.reason, actor=args.actor
                )
            except Overtaken as error:
                print(f"amlp: {error}", file=sys.stderr)
                return 12
    return {"promote": 0, "keep": 10, "refuse": 11}[decision.outcome]


def _rollback(args: argparse.Namespace) -> int:
    name = read_params(args).register_.segmenter_name
    from amlp.promotion.ledger import Overtaken
    from amlp.promotion.promote import rollback

    with _registry(args) as client:
        _settled(client, name)
        try:
            old, new = rollback(
                client, name, to=args.to or "", reason=args.reason, actor=args.actor, dry_run=args.dry_run
            )
        except Overtaken as error:
            print(f"amlp: {error}", file=sys.stderr)
            return 12
    print(f"{name}: champion was version {old}, {'would be' if args.dry_run else 'is'} version {new}.")
    return 0


def _history(args: argparse.Namespace) -> int:
    name = read_params(args).register_.segmenter_name
    with _registry(args) as client:
        history = _settled(client, name)
    if args.json:
        import dataclasses
        import json

        print(json.dumps([dataclasses.asdict(entry) for entry in history.entries], indent=2))
        return 1 if history.troubles else 0
    if not history.entries:
        print(f"{name}: nothing was decided yet; `amlp promote` asks the gate about the candidate.")
    for entry in history.entries:
        over = f" over version {entry.before}" if entry.before else ""
        void = ", VOID: another change came first" if entry.void else ""
        print(f"{entry.number:4} {entry.at} {entry.action} version {entry.version}{over}, by {entry.actor}{void}")
        print(f"     {entry.reason}. {entry.summary}")
    if history.last:
        print(f"champion: version {history.champion}; before it: {history.previous or 'none'}")
    return 1 if history.troubles else 0


def _show(args: argparse.Namespace) -> int:
    name = read_params(args).register_.segmenter_name
    from amlp.promotion.promote import find_version
    from amlp.promotion.show import show

    with _registry(args) as client:
        history = _settled(client, name)
        print(show(client, find_version(client, name, args.version), history))
    return 1 if history.troubles else 0
