"""What the components share: their images, how they are sent to Kubeflow, and helpers of their functions."""

import inspect
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kfp.dsl import Metrics

from amlp.layout import Folder

# Part of each task's cache key: where a tag does not change with the code, a new build under an old tag is taken for
# the old code, so builds set a tag per commit. The first holds all of amlp and kfp, the second what needs no torch.
STAGES_IMAGE = os.environ.get("AMLP_STAGES_IMAGE") or "amlp-stages:0.1.0"
PIPELINE_IMAGE = os.environ.get("AMLP_PIPELINE_IMAGE") or "amlp-pipeline:0.1.0"


def stage(function: Callable[..., Any]) -> Any:
    """Make a component of a function that does the work of a stage."""
    return _component(function, STAGES_IMAGE)


def light(function: Callable[..., Any]) -> Any:
    """Make a component of a function that needs no torch."""
    return _component(function, PIPELINE_IMAGE)


# Kubeflow copies a component's source into the status of each run several times, and shows no task of a run whose
# status is too large. So tasks get no source: the function stands in the image, beside what it imports. By the comment
# `kfp.local` knows that this is a Python component.
_COMMAND = ["python3", "-c", "from components.runtime import main; main()  # kfp.dsl.executor_main"]


def _component(function: Callable[..., Any], image: str) -> Any:
    if os.environ.get("_KFP_RUNTIME") == "true":
        # Within a task, kfp has no decorator, and `run_task` looks for the function itself.
        return function
    from kfp import dsl

    # Without what is said of the arguments, which would be copied too.
    function.__doc__ = (inspect.getdoc(function) or "").partition("\n\n")[0]
    made = dsl.component(function, base_image=image, packages_to_install=[], install_kfp_package=False)
    container = made.component_spec.implementation.container
    inputs = container.args[container.args.index("--executor_input") + 1]
    container.command, container.args = _COMMAND, [function.__module__, function.__name__, inputs]
    return made


def log_figures(metrics: Metrics, folder: str) -> None:
    """Show the numbers of a stage's metrics.json on the run's page; nested ones as `test.benign`."""
    from amlp.files import read_json
    from amlp.registry.runlog import flatten

    file = Path(folder, "metrics.json")
    for name, value in flatten(read_json(file)).items():
        if isinstance(value, (int, float)):
            metrics.log_metric(name, float(value))
    # kfp.local takes an artifact without a file for one that was lost, and runs the task again.
    shutil.copy(file, metrics.path)


def link_outputs(outputs: Mapping[Folder, str]) -> None:
    """Lay outputs out under one folder, as `register` and `report` look for them.

    Args:
        outputs: the stage's folder in a `RunFolder` -> where that output really is.
    """
    for folder, path in outputs.items():
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        folder.path.symlink_to(Path(path).absolute())


def train(name: str, params: str, gpus: str, shards: str, encoder: str, out: str) -> None:
    """Run a training stage where the task's settings say.

    Args:
        name: of the stage.
        params: JSON.
        gpus: of the task's pod, or of each worker of its Ray cluster.
        shards: folder.
        encoder: folder; empty for stages that take none.
        out: folder to write.
    """
    from amlp.cluster.training import SETTINGS, ClusterParams, run_training
    from amlp.params import parse_params, parse_section

    settings = json.loads(os.environ.get(SETTINGS, "{}"))
    cluster = parse_section(ClusterParams, {**settings, "gpus": int(gpus)}, SETTINGS)
    run_training(
        stage=name,
        params=parse_params(json.loads(params), "params"),
        cluster=cluster,
        shards=Path(shards),
        encoder=Path(encoder) if encoder else None,
        out=Path(out),
    )
