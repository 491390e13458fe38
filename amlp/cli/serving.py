"""The commands that use a segmenter: predict and export-onnx."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from amlp.cli.arguments import Commands, path


def add_to(commands: Commands) -> None:
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
            help="MLflow's address (default: MLFLOW_TRACKING_URI, else mlflow.db in this folder)",
        )

    predict = commands.command("predict", _predict, "segment pictures and NIfTI volumes: masks, overlays and a table")
    predict.add_argument("source", type=Path, metavar="IN", help="a file, or a folder with its subfolders")
    predict.add_argument("out", type=Path, metavar="OUT", help="folder to write; an interrupted run resumes in it")
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

    export = commands.command("export-onnx", _export_onnx, "write a segmenter as ONNX, checked with ONNX Runtime")
    model(export, "model")
    export.add_argument("out", type=Path, metavar="OUT.onnx", help="file to write")
    path(export, "--images", None, "folder of pictures to check the export on (default: generated ones)")


def _predict(args: argparse.Namespace) -> int:
    from amlp.registry.weights import segmenter_weights
    from amlp.serving.predict import predict_folder

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
    from amlp.registry.weights import segmenter_weights
    from amlp.serving.export import export_onnx

    with segmenter_weights(args.model, args.tracking_uri) as weights:
        export_onnx(weights=weights, out=args.out, images=args.images)
