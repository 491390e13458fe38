"""The training pipeline's arguments, made from parameters when a run is submitted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from amlp.errors import UserError
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
}
_SQLITE = "sqlite:///"


def pipeline_arguments(params: Params, *, data_md5: str, git_commit: str, state: str = "") -> dict[str, str]:
    """Cut the parameters into the parts that the stages depend on.

    Args:
        params: of the run.
        data_md5: see `pipelines.training.training`, as for `git_commit` and `state`.

    Raises:
        UserError: MLflow's database would lie in a task's temporary folder.
    """
    uri = params.register_.tracking_uri
    if uri.startswith(_SQLITE) and not PurePosixPath(uri.removeprefix(_SQLITE)).is_absolute():
        raise UserError(
            f"register.tracking_uri: {uri} is relative, and a pipeline's tasks have no folder in common. "
            "Use an MLflow server's address, or sqlite:/// and an absolute path on a volume that all tasks see."
        )
    values = params.model_dump(by_alias=True)
    parts = {name: _text(_part(values, keys)) for name, keys in KEYS.items()}
    return {**parts, "params": _text(values), "data_md5": data_md5, "git_commit": git_commit, "state": state}


def _part(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    part: dict[str, Any] = {}
    for key in keys:
        section, _, leaf = key.partition(".")
        if leaf:
            part.setdefault(section, {})[leaf] = values[section][leaf]
        else:
            part[section] = values[section]
    return part


def _text(values: Mapping[str, Any]) -> str:
    # Sorted: equal values must be equal text, or the cache takes them for others.
    return json.dumps(values, sort_keys=True)
