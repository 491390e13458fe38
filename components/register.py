"""Component of stage `register`."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.common import link_outputs, stage


@stage(additional_funcs=[link_outputs])
def register(
    params: str,
    git_commit: str,
    cases: Input[Dataset],
    validated: Input[Dataset],
    shards: Input[Dataset],
    encoder: Input[Model],
    segmenter: Input[Model],
    scratch: Input[Model],
    evaluation: Input[Artifact],
    registration: Output[Artifact],
) -> None:
    """Record the run and both models in MLflow."""
    import json
    import os
    import shutil
    import tempfile
    from pathlib import Path

    from amlp.environment import quiet
    from amlp.params import parse_params
    from amlp.registry.register import register

    quiet()
    # An image holds no repository that could be asked.
    os.environ["AMLP_GIT_COMMIT"] = git_commit
    settings = parse_params(json.loads(params), "params")
    with tempfile.TemporaryDirectory() as root:
        link_outputs(
            root,
            {
                "data/ingest": cases.path,
                "data/validate": validated.path,
                "data/shards": shards.path,
                "models/encoder": encoder.path,
                "models/segmenter": segmenter.path,
                "models/scratch": scratch.path,
                "evaluation": evaluation.path,
            },
        )
        register(params=settings, root=Path(root))
        shutil.copy(Path(root, "registration.json"), registration.path)
