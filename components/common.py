"""What the components share: their images, and functions that travel in a component's own source."""

import os
from functools import partial

from kfp import dsl
from kfp.dsl import Metrics

# Part of each task's cache key: where a tag does not change with the code, a new build under an old tag is taken for
# the old code, so builds set a tag per commit. The first holds all of amlp and kfp, the second what needs no torch.
STAGES_IMAGE = os.environ.get("AMLP_STAGES_IMAGE") or "amlp-stages:0.1.0"
PIPELINE_IMAGE = os.environ.get("AMLP_PIPELINE_IMAGE") or "amlp-pipeline:0.1.0"

# Nothing is installed when a task starts: the image is what was tested.
_component = partial(dsl.component, packages_to_install=[], install_kfp_package=False)
stage = partial(_component, base_image=STAGES_IMAGE)
light = partial(_component, base_image=PIPELINE_IMAGE)


def log_figures(metrics: Metrics, folder: str) -> None:
    """Show the numbers of a stage's metrics.json on the run's page; nested ones as `test.benign`."""
    import shutil
    from pathlib import Path

    from amlp.files import read_json
    from amlp.registry.tracking import flatten

    file = Path(folder, "metrics.json")
    for name, value in flatten(read_json(file)).items():
        if isinstance(value, (int, float)):
            metrics.log_metric(name, float(value))
    # kfp.local takes an artifact without a file for one that was lost, and runs the task again.
    shutil.copy(file, metrics.path)


def link_outputs(root: str, outputs: dict[str, str]) -> None:
    """Lay outputs out under one folder, as `register` and `report` look for them.

    Args:
        root: an existing folder.
        outputs: place in the layout -> where that output really is.
    """
    from pathlib import Path

    for name, path in outputs.items():
        link = Path(root, name)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(path).absolute())


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
    import json
    import os
    from pathlib import Path

    from amlp.cluster.training import SETTINGS, ClusterParams, run_training
    from amlp.environment import quiet
    from amlp.params import parse_params, parse_section

    quiet()
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
