"""The first three stages as a pipeline, for tests of their image.

    python -m tests.support.three_stages ROOT < ARGUMENTS

In a process of its own: kfp.local keeps its settings in globals, and the image's name is read on import. The pipeline's
annotations are read when it is defined: no `from __future__ import annotations` here.
"""

import json
import sys

from kfp import dsl

from amlp.params import Params, parse_params
from components.ingest import ingest
from components.preprocess import preprocess
from components.validate import validate
from pipelines.arguments import pipeline_arguments

STAGES = ("ingest", "validate", "preprocess")
PARAMS = parse_params(
    {
        "ingest": {"phantom": {"patients": 16, "images_per_patient": 2, "height": 48, "width": 56}},
        "preprocess": {"height": 48, "width": 48, "test_fraction": 0.25, "val_fraction": 0.25},
        # Not read by these stages.
        "register": {"tracking_uri": "http://mlflow:5000"},
    },
    "test",
)


@dsl.pipeline(name="three-stages")
def three_stages(ingest_params: str, validate_params: str, preprocess_params: str, git_commit: str) -> None:
    """Make shards of generated images."""
    cases = ingest(params=ingest_params, data_uri="", data_md5="", git_commit=git_commit).outputs["cases"]
    validated = validate(params=validate_params, cases=cases).outputs["validated"]
    preprocess(params=preprocess_params, cases=cases, validated=validated)


def three_stages_arguments(params: Params, git_commit: str) -> dict[str, str]:
    """Make its arguments as those of the whole pipeline are made."""
    given = pipeline_arguments(params, git_commit=git_commit)
    return {name: given[name] for name in three_stages.pipeline_spec.root.input_definitions.parameters}


if __name__ == "__main__":
    from kfp import local

    restricted = {"read_only": True, "network_mode": "none", "cap_drop": ["ALL"]}
    restricted["security_opt"] = ["no-new-privileges"]
    local.init(local.DockerRunner(tmpfs={"/tmp": ""}, **restricted), pipeline_root=sys.argv[1])
    three_stages(**json.load(sys.stdin))
