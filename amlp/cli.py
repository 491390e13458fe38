"""The `amlp` command: one subcommand a stage, with the paths that dvc.yaml uses as defaults.

A stage's own module is imported only when its subcommand runs, so that `amlp --help` does not wait for torch, and after
the parameters are read, so that their mistakes are told at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amlp.environment import quiet
from amlp.errors import UserError

if TYPE_CHECKING:
    from amlp.params import Params

# What a bug report needs to name.
_NAMED_VERSIONS = ("torch", "timm", "ray", "mlflow", "dvc", "great-expectations", "kfp")


def _place(text: str) -> Path | str:
    """A local path, or an address in S3, which a path would mangle."""
    return text if text.startswith("s3://") else Path(text)


def _params(args: argparse.Namespace) -> Params:
    from amlp.params import load_params

    return load_params(args.params)


def _ingest(args: argparse.Namespace) -> None:
    params = _params(args)
    from amlp.data.ingest import ingest

    ingest(params=params.ingest, seed=params.seed, out=args.out)


def _validate(args: argparse.Namespace) -> None:
    params = _params(args)
    from amlp.data.validate import validate

    validate(params=params.validate_, ingest=args.ingest, out=args.out)


def _preprocess(args: argparse.Namespace) -> None:
    params = _params(args)
    from amlp.data.preprocess import preprocess

    preprocess(
        params=params.preprocess,
        scores=params.scores,
        seed=params.seed,
        ingest=args.ingest,
        validated=args.validated,
        out=args.out,
    )


def _pretrain(args: argparse.Namespace) -> None:
    params = _params(args)
    from amlp.training.pretrain import pretrain

    pretrain(params=params, shards=args.shards, out=args.out, state=args.state)


def _finetune(args: argparse.Namespace) -> None:
    params = _params(args)
    from amlp.training.finetune import finetune

    encoder = None if args.from_scratch else args.encoder
    out = args.out or Path("models/scratch" if args.from_scratch else "models/segmenter")
    finetune(params=params, shards=args.shards, encoder=encoder, out=out, state=args.state)


def _evaluate(args: argparse.Namespace) -> None:
    params = _params(args)
    from amlp.evaluation.evaluate import evaluate

    evaluate(
        params=params.evaluate,
        seed=params.seed,
        ingest=args.ingest,
        shards=args.shards,
        segmenter=args.segmenter,
        scratch=None if args.no_scratch else args.scratch,
        # Another folder: register and report take what stands in `evaluation` for scores on the test split.
        out=args.out or Path("evaluation" if args.split == "test" else f"evaluation-{args.split}"),
        split=args.split,
        label_fraction=params.finetune.label_fraction,
    )


def _register(args: argparse.Namespace) -> None:
    params = _params(args)
    from amlp.registry.register import register

    register(params=params, root=args.root)


def _report(args: argparse.Namespace) -> None:
    params = _params(args)
    from amlp.report import report

    report(params=params, root=args.root, out=args.out or args.root / "report.html")


def _summary(args: argparse.Namespace) -> None:
    from amlp.summary import summary

    print(summary(args.root))


def _predict(args: argparse.Namespace) -> int:
    from amlp.serving.predict import predict_folder
    from amlp.serving.weights import segmenter_weights

    with segmenter_weights(args.model, args.tracking_uri) as weights:
        summary = predict_folder(
            weights=weights,
            source=args.source,
            out=args.out,
            exclude=args.exclude,
            overlays=not args.no_overlays,
            force=args.force,
        )
    return 1 if summary["bad_files"] else 0


def _export_onnx(args: argparse.Namespace) -> None:
    from amlp.serving.export import export_onnx
    from amlp.serving.weights import segmenter_weights

    with segmenter_weights(args.model, args.tracking_uri) as weights:
        export_onnx(weights=weights, out=args.out, images=args.images)


def _workspace(args: argparse.Namespace) -> None:
    from amlp.workspace import make_workspace

    make_workspace(args.folder, recipe=args.recipe, data=args.data, project=args.project)


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


def _registry(args: argparse.Namespace) -> Any:
    """Connect to MLflow; the parameters name the place and the model."""
    from amlp.registry.tracking import connect, resolve_uri, tracking_address

    settings = _params(args).register_
    return connect(resolve_uri(args.tracking_uri or tracking_address(settings.tracking_uri), args.root))


def _settled(client: Any, name: str) -> Any:
    """Read the history, and finish what was left undone; say what that was."""
    from mlflow import MlflowException

    from amlp.registry.ledger import read_history, settle

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
    params = _params(args)
    from amlp.registry import promotion
    from amlp.registry.ledger import Overtaken

    name = params.register_.segmenter_name
    with _registry(args) as client:
        _settled(client, name)
        candidate = promotion.find_version(client, name, args.version)
        reference = promotion.find_reference(client, candidate)
        print(f"{candidate} against {f'version {reference}' if reference else 'the model from scratch'}", flush=True)
        decision = promotion.judge(
            client,
            candidate,
            reference=reference,
            params=params.gate,
            ingest=args.root / "data/ingest",
            shards=args.root / "data/shards",
            scratch=args.root / "models/scratch",
        )
        print(f"{decision.outcome} ({decision.reason}): {decision.explanation}")
        for figure in decision.classes:
            print(f"  {figure.label}: {figure}")
        if args.dry_run:
            print("Nothing was written.")
        else:
            try:
                promotion.conclude(
                    client, candidate, decision.as_dict(), reference=reference, reason=args.reason, actor=args.actor
                )
            except Overtaken as error:
                print(f"amlp: {error}", file=sys.stderr)
                return 12
    return {"promote": 0, "keep": 10, "refuse": 11}[decision.outcome]


def _rollback(args: argparse.Namespace) -> int:
    name = _params(args).register_.segmenter_name
    from amlp.registry.ledger import Overtaken
    from amlp.registry.promotion import rollback

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
    name = _params(args).register_.segmenter_name
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
    name = _params(args).register_.segmenter_name
    from amlp.registry.promotion import find_version
    from amlp.registry.show import show

    with _registry(args) as client:
        history = _settled(client, name)
        print(show(client, find_version(client, name, args.version), history))
    return 1 if history.troubles else 0


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
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    def path(to: argparse.ArgumentParser, flag: str, default: str | None, text: str) -> None:
        shown = f"{text} (default: {default})" if default else text
        to.add_argument(flag, type=Path, default=Path(default) if default else None, metavar="PATH", help=shown)

    def place(to: argparse.ArgumentParser, flag: str, default: str | None, text: str) -> None:
        shown = f"{text}; local or s3://bucket/prefix" + (f" (default: {default})" if default else "")
        to.add_argument(flag, type=_place, default=Path(default) if default else None, metavar="PLACE", help=shown)

    def stage(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        added = command(name, run, text)
        path(added, "--params", "params.yaml", "the parameters")
        return added

    ingest = stage("ingest", _ingest, "read the source into images, masks and a manifest")
    path(ingest, "--out", "data/ingest", "folder to write")

    validate = stage("validate", _validate, "check every case, list the bad ones, stop past the tolerance")
    path(validate, "--ingest", "data/ingest", "what ingest wrote")
    path(validate, "--out", "data/validate", "folder to write")

    preprocess = stage("preprocess", _preprocess, "group, split and pack the images; score their patches")
    path(preprocess, "--ingest", "data/ingest", "what ingest wrote")
    path(preprocess, "--validated", "data/validate", "what validate wrote")
    path(preprocess, "--out", "data/shards", "folder to write")

    pretrain = stage("pretrain", _pretrain, "pre-train the encoder without labels")
    place(pretrain, "--shards", "data/shards", "what preprocess wrote")
    place(pretrain, "--out", "models/encoder", "folder to write")
    place(pretrain, "--state", ".amlp/state", "folder for what a killed run goes on from")

    finetune = stage("finetune", _finetune, "train the segmenter on labelled images")
    place(finetune, "--shards", "data/shards", "what preprocess wrote")
    start = finetune.add_mutually_exclusive_group()
    start.add_argument(
        "--encoder",
        type=_place,
        default=Path("models/encoder"),
        metavar="PLACE",
        help="what pretrain wrote; local or s3://bucket/prefix (default: models/encoder)",
    )
    start.add_argument("--from-scratch", action="store_true", help="start from random weights, for comparison")
    place(finetune, "--out", None, "folder to write (default: models/segmenter, or models/scratch when from scratch)")
    place(finetune, "--state", ".amlp/state", "folder for what a killed run goes on from")

    evaluate = stage("evaluate", _evaluate, "score the segmenter and its baselines on the test split")
    path(evaluate, "--ingest", "data/ingest", "what ingest wrote")
    path(evaluate, "--shards", "data/shards", "what preprocess wrote")
    path(evaluate, "--segmenter", "models/segmenter", "what finetune wrote")
    path(evaluate, "--scratch", "models/scratch", "what finetune --from-scratch wrote")
    evaluate.add_argument("--no-scratch", action="store_true", help="there is no model trained from scratch")
    evaluate.add_argument(
        "--split",
        choices=("test", "unused"),
        default="test",
        help="score on the test split, or on the training images whose masks fine-tuning did not see, by "
        "finetune.label_fraction and seed (default: test)",
    )
    path(evaluate, "--out", None, "folder to write (default: evaluation, or evaluation-unused for --split unused)")

    register = stage("register", _register, "record the run and both models in MLflow")
    path(register, "--root", ".", "folder that holds data/, models/ and evaluation/")

    report = stage("report", _report, "write all results as one HTML page")
    path(report, "--root", ".", "folder that holds data/, models/ and evaluation/")
    path(report, "--out", None, "file to write (default: report.html in the root)")

    summary = command("summary", _summary, "say what was trained and registered, and where to look")
    path(summary, "--root", ".", "folder that holds evaluation/ and registration.json")

    def registry(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = stage(name, run, text)
        path(added, "--root", ".", "folder that holds data/, models/ and, with SQLite, mlflow.db")
        added.add_argument("--tracking-uri", metavar="URI", help="of MLflow (default: register.tracking_uri)")
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

    def model(to: argparse.ArgumentParser, flag: str, **settings: Any) -> None:
        to.add_argument(
            flag,
            metavar="MODEL",
            help="models:/NAME@ALIAS or models:/NAME/VERSION in MLflow, or segmenter.pt, or its folder"
            + (" (default: %(default)s)" if settings else ""),
            **settings,
        )
        to.add_argument(
            "--tracking-uri",
            metavar="URI",
            help="MLflow's address (default: MLFLOW_TRACKING_URI, or mlflow.db in this folder)",
        )

    predict = command("predict", _predict, "segment pictures and NIfTI volumes: masks, overlays and a table")
    predict.add_argument("source", type=Path, metavar="IN", help="a file, or a folder with its subfolders")
    predict.add_argument("out", type=Path, metavar="OUT", help="folder to write; an interrupted run goes on in it")
    model(predict, "--model", default="models:/amlp-segmenter@champion")
    predict.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out files whose path in IN matches, for example '*_mask*.png'; may be given several times",
    )
    predict.add_argument("--no-overlays", action="store_true", help="write masks and the table only")
    predict.add_argument("--force", action="store_true", help="write into a folder that holds other things")

    export = command("export-onnx", _export_onnx, "write a segmenter as ONNX, checked with ONNX Runtime")
    model(export, "model")
    export.add_argument("out", type=Path, metavar="OUT.onnx", help="file to write")
    path(export, "--images", None, "folder of pictures to check the export on (default: generated ones)")

    workspace = command("workspace", _workspace, "make a folder in which the pipeline runs on other data")
    workspace.add_argument("folder", type=Path, metavar="FOLDER", help="where, for example workspaces/busi")
    workspace.add_argument(
        "--recipe", type=Path, required=True, metavar="FILE", help="parameters that differ from the defaults"
    )
    path(workspace, "--data", None, "the source's images; becomes ingest.path")
    path(workspace, "--project", ".", "folder that holds dvc.yaml and amlp/")

    study = command("study", _study, "compare arms, label fractions and seeds; go on where it was stopped")
    study.add_argument("study", type=Path, metavar="STUDY", help="what to compare, for example studies/busi-cpu.yaml")
    path(study, "--shards", "data/shards", "what preprocess wrote")
    path(study, "--ingest", "data/ingest", "what ingest wrote")
    path(study, "--out", "study", "folder for everything that the study trains")
    path(study, "--page", None, "Markdown page to write (default: results.md in the study's folder)")
    study.add_argument("--jobs", type=int, default=1, metavar="N", help="units at a time (default: 1)")
    study.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="FILTER",
        help="run a part: arm=a,b or fraction=0.1 or seed=0; may be given several times",
    )
    study.add_argument(
        "--stale",
        choices=("stop", "rerun", "keep"),
        default="stop",
        help="finished units that other code or data made: tell and stop, make again, or keep (default: stop)",
    )
    study.add_argument("--page-only", action="store_true", help="train nothing, write the page of what is finished")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 for what the user can mend, 130 when interrupted.

    A study of which a part failed returns 1, and so does a prediction when a file was unreadable.
    """
    args = build_parser().parse_args(argv)
    quiet()
    try:
        code: int | None = args.run(args)
    except UserError as error:
        print(f"amlp: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("amlp: interrupted", file=sys.stderr)
        return 130
    return code or 0
