"""The commands of the pipeline's stages, with the paths that dvc.yaml uses as defaults, and of their summary."""

from __future__ import annotations

import argparse
from pathlib import Path

from amlp.cli.arguments import RUN, Commands, path, path_or_s3, read_params, uri
from amlp.layout import RunFolder


def add_to(commands: Commands) -> None:
    ingest = commands.stage("ingest", _ingest, "read the source into images, masks and a manifest")
    path(ingest, "--out", RUN.ingest.path, "folder to write")

    validate = commands.stage("validate", _validate, "check every case, list the bad ones, stop past the tolerance")
    path(validate, "--ingest", RUN.ingest.path, "what ingest wrote")
    path(validate, "--out", RUN.validate.path, "folder to write")

    preprocess = commands.stage("preprocess", _preprocess, "group, split and pack the images; score their patches")
    path(preprocess, "--ingest", RUN.ingest.path, "what ingest wrote")
    path(preprocess, "--validated", RUN.validate.path, "what validate wrote")
    path(preprocess, "--out", RUN.shards.path, "folder to write")

    pretrain = commands.stage("pretrain", _pretrain, "pre-train the encoder without labels")
    uri(pretrain, "--shards", RUN.shards.path, "what preprocess wrote")
    uri(pretrain, "--out", RUN.encoder.path, "folder to write")
    uri(pretrain, "--state", ".amlp/state", "folder of the checkpoints that a killed run resumes from")

    finetune = commands.stage("finetune", _finetune, "train the segmenter on labelled images")
    uri(finetune, "--shards", RUN.shards.path, "what preprocess wrote")
    start = finetune.add_mutually_exclusive_group()
    start.add_argument(
        "--encoder",
        type=path_or_s3,
        default=RUN.encoder.path,
        metavar="URI",
        help="what pretrain wrote; local or s3://bucket/prefix (default: models/encoder)",
    )
    start.add_argument("--from-scratch", action="store_true", help="start from random weights, for comparison")
    uri(finetune, "--out", None, "folder to write (default: models/segmenter, or models/scratch when from scratch)")
    uri(finetune, "--state", ".amlp/state", "folder of the checkpoints that a killed run resumes from")

    evaluate = commands.stage("evaluate", _evaluate, "score the segmenter and its baselines on the test split")
    path(evaluate, "--ingest", RUN.ingest.path, "what ingest wrote")
    path(evaluate, "--shards", RUN.shards.path, "what preprocess wrote")
    path(evaluate, "--segmenter", RUN.segmenter.path, "what finetune wrote")
    path(evaluate, "--scratch", RUN.scratch.path, "what finetune --from-scratch wrote")
    evaluate.add_argument("--no-scratch", action="store_true", help="there is no model trained from scratch")
    evaluate.add_argument(
        "--split",
        choices=("test", "unused"),
        default="test",
        help="score on the test split, or on the training images whose masks fine-tuning did not see, by "
        "finetune.label_fraction and seed (default: test)",
    )
    path(evaluate, "--out", None, "folder to write (default: evaluation, or evaluation-unused for --split unused)")

    register = commands.stage("register", _register, "record the run and both models in MLflow")
    path(register, "--root", ".", "folder that holds data/, models/ and evaluation/")

    report = commands.stage("report", _report, "write all results as one HTML page")
    path(report, "--root", ".", "folder that holds data/, models/ and evaluation/")
    path(report, "--out", None, "file to write (default: report.html in the root)")

    summary = commands.command("summary", _summary, "say what was trained and registered, and where to look")
    path(summary, "--root", ".", "folder that holds evaluation/ and registration.json")


def _ingest(args: argparse.Namespace) -> None:
    params = read_params(args)
    from amlp.data.ingest import ingest
    from amlp.data.privacy import Pseudonyms

    ingest(params=params.ingest, seed=params.seed, out=args.out, pseudonyms=Pseudonyms.of_project(Path(".")))


def _validate(args: argparse.Namespace) -> None:
    params = read_params(args)
    from amlp.data.validate import validate

    validate(params=params.validate_, ingest=args.ingest, out=args.out)


def _preprocess(args: argparse.Namespace) -> None:
    params = read_params(args)
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
    params = read_params(args)
    from amlp.training.pretrain import pretrain

    pretrain(params=params, shards=args.shards, out=args.out, state=args.state)


def _finetune(args: argparse.Namespace) -> None:
    params = read_params(args)
    from amlp.training.finetune import finetune

    encoder = None if args.from_scratch else args.encoder
    out = args.out or (RUN.scratch.path if args.from_scratch else RUN.segmenter.path)
    finetune(params=params, shards=args.shards, encoder=encoder, out=out, state=args.state)


def _evaluate(args: argparse.Namespace) -> None:
    params = read_params(args)
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
    params = read_params(args)
    from amlp.registry.register import register

    register(params=params, root=args.root)


def _report(args: argparse.Namespace) -> None:
    params = read_params(args)
    from amlp.reporting.report import report

    report(params=params, root=args.root, out=args.out or RunFolder(args.root).report)


def _summary(args: argparse.Namespace) -> None:
    from amlp.reporting.summary import summary

    print(summary(args.root))
