"""The training pipeline as the YAML that Kubeflow takes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from amlp.files import atomic_file

if TYPE_CHECKING:
    from amlp.cluster.training import ClusterParams
    from pipelines.resources import Resources


def write_pipeline(
    out: Path,
    *,
    cluster: ClusterParams | None = None,
    follow_data: bool = False,
    cached: bool = True,
    record: str = "",
    fresh: Collection[str] = (),
    resources: Resources | None = None,
) -> None:
    """Compile the training pipeline.

    Args:
        out: file to write, .yaml.
        cluster: see `pipelines.training.training_pipeline`, as for the others.
    """
    from kfp.compiler import Compiler

    from pipelines.training import training_pipeline

    with atomic_file(out) as temporary:
        Compiler().compile(
            training_pipeline(
                cluster, follow_data=follow_data, cached=cached, record=record, fresh=fresh, resources=resources
            ),
            str(temporary),
        )
