"""The training pipeline as the YAML that Kubeflow takes."""

from __future__ import annotations

from pathlib import Path

import yaml

from amlp.files import atomic_file


def write_pipeline(out: Path, *, follow_data: bool = False) -> None:
    """Compile the training pipeline.

    Args:
        out: file to write, .yaml.
        follow_data: look the data's version up in every run, for a schedule that follows a branch; the cache would take
            the branch's name for the data.
    """
    from kfp.compiler import Compiler

    from pipelines.training import training

    with atomic_file(out) as temporary:
        Compiler().compile(training, str(temporary))
        if follow_data:
            documents = list(yaml.safe_load_all(temporary.read_text(encoding="utf-8")))
            task = documents[0]["components"]["comp-exit-handler-1"]["dag"]["tasks"]["pull-data"]
            task["cachingOptions"] = {}
            temporary.write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")
