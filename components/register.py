"""Component of stage `register`."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components.common import link_outputs, stage


@stage
def register(
    params: str,
    data_uri: str,
    data_md5: str,
    git_commit: str,
    cases: Input[Dataset],
    validated: Input[Dataset],
    shards: Input[Dataset],
    encoder: Input[Model],
    segmenter: Input[Model],
    scratch: Input[Model],
    evaluation: Input[Artifact],
    registration: Output[Artifact],
    page: Output[HTML],
) -> None:
    """Record the run and both models in MLflow.

    Args:
        data_uri: of the images in DVC's remote, for people to find them again, as data_md5; empty for generated images.
    """
    import json
    import os
    import shutil
    import tempfile
    from pathlib import Path

    from amlp.environment import check_code
    from amlp.params import parse_params
    from amlp.registry.links import write_links
    from amlp.registry.register import register

    check_code(git_commit)
    # Nothing here could be asked where no image says it.
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
        # Not their commit, which differs where the images do not; the run's outcome is recorded with it.
        source = {"source_uri": data_uri, "source_md5": data_md5}
        tags = {name: value for name, value in source.items() if value}
        register(params=settings, root=Path(root), tags=tags)
        write_links(Path(page.path), Path(root, "registration.json"))
        shutil.copy(Path(root, "registration.json"), registration.path)
