"""The training pipeline's arguments, made from parameters when a run is submitted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from amlp.cluster.training import ClusterParams
from amlp.errors import UserError, without_credentials
from amlp.params import Params

# Pipeline input -> the keys that its stage depends on. A change elsewhere leaves the text, and with it the cache, as it
# is. parse_params checks sections against each other, so where a stage has only one side of such a check, the values
# that decide it come along: encoder.patch, and the images' size, which shards have from `preprocess` anyway.
KEYS = {
    "ingest_params": ("seed", "ingest"),
    "validate_params": ("validate",),
    "preprocess_params": ("seed", "preprocess", "scores", "encoder.patch"),
    "pretrain_params": ("seed", "encoder", "pretrain", "preprocess.height", "preprocess.width"),
    "finetune_params": ("seed", "encoder", "finetune", "preprocess.height", "preprocess.width"),
    "evaluate_params": ("seed", "evaluate"),
    "gate_params": ("gate",),
}
_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class DataSource:
    """A folder of images under DVC: git address, revision, and the folder's path in the repository."""

    repo: str = ""
    rev: str = ""
    path: str = ""


def pipeline_arguments(
    params: Params,
    *,
    git_commit: str,
    data: DataSource | None = None,
    cluster: ClusterParams | None = None,
    share: str = "",
) -> dict[str, Any]:
    """Cut the parameters into the parts that the stages depend on, and say where they run.

    Args:
        params: of the run.
        git_commit: see `pipelines.training.training`, as for `share`.
        data: where the images are; not for generated ones.
        cluster: where trainings run.

    Raises:
        UserError: MLflow's database or the images would have to be in a task's temporary folder, images of `data` would
            not be read, or a Ray cluster would have no workers.
    """
    cluster, data = cluster or ClusterParams(), data or DataSource()
    uri = params.register_.tracking_uri
    if uri.startswith(_SQLITE) and not PurePosixPath(uri.removeprefix(_SQLITE)).is_absolute():
        raise UserError(
            f"register.tracking_uri: {uri} is relative, and a pipeline's tasks have no folder in common. "
            "Use an MLflow server's address, or sqlite:/// and an absolute path on a volume that all tasks see."
        )
    if params.ingest.source != "phantom" and not (data.repo and data.rev and data.path):
        raise UserError(
            f"ingest.source: {params.ingest.source} reads files, and a pipeline's tasks see no folder of this machine; "
            "name the DVC repository that holds them, a revision and the folder: --data-repo, --data-rev, --data-path."
        )
    if params.ingest.source == "phantom" and data.repo:
        # The drawn images would be recorded with the address and the MD5 of others.
        raise UserError(
            f"ingest.source: phantom draws images and would not read those of {without_credentials(data.repo)}; set "
            "`ingest.source: busi` in the parameters, or name no data repository."
        )
    on_ray = cluster.launcher == "rayjob"
    for section in ("pretrain", "finetune"):
        if on_ray and getattr(params, section).num_workers < 1:
            raise UserError(f"{section}.num_workers: 0 trains without Ray; a RayJob needs 1 or more, see --workers.")
    # What is a default is left out: other defaults are other code, whose commit `ingest` knows.
    values = params.model_dump(by_alias=True, exclude_defaults=True)
    # The images come from `data`; a path on somebody's machine says nothing about them.
    if data.repo:
        values.setdefault("ingest", {})["path"] = data.path
    parts: dict[str, Any] = {name: _text(_part(values, keys)) for name, keys in KEYS.items()}
    arguments = {
        **parts,
        "params": _text(values),
        "git_commit": git_commit,
        "data_repo": data.repo,
        "data_rev": data.rev,
        "data_path": data.path,
        "share": share,
        "gpus": str(cluster.gpus),
        # A Ray cluster's are compiled into the pipeline, with its queue and deadlines.
        "node_selector": {} if on_ray else cluster.node_selector,
        "tolerations": [] if on_ray else cluster.tolerations,
    }
    for name, value in {**arguments, "register": record_of(params)}.items():
        if found := re.search(r"\{\{.{0,40}", str(value)):
            # Argo, which runs Kubeflow's tasks, puts its own values in their place.
            raise UserError(f"{name}: {found.group()!r}: Kubeflow replaces what follows two braces; write it without.")
    return arguments


def record_of(params: Params) -> str:
    """Say where a run's tasks record their errors, see `amlp.environment.RECORD`."""
    return _text({"tracking_uri": params.register_.tracking_uri, "experiment": params.register_.experiment})


def _part(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    part: dict[str, Any] = {}
    for key in keys:
        section, _, leaf = key.partition(".")
        if leaf:
            if leaf in values.get(section, {}):
                part.setdefault(section, {})[leaf] = values[section][leaf]
        elif section in values:
            part[section] = values[section]
    return part


def _text(values: Mapping[str, Any]) -> str:
    # Sorted: equal values must be equal text, or the cache takes them for others.
    return json.dumps(values, sort_keys=True)
