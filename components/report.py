"""Component of stage `report`."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components.common import link_outputs, stage


@stage
def report(
    params: str,
    share: str,
    validated: Input[Dataset],
    shards: Input[Dataset],
    encoder: Input[Model],
    segmenter: Input[Model],
    scratch: Input[Model],
    evaluation: Input[Artifact],
    registration: Input[Artifact],
    page: Output[HTML],
) -> None:
    """Write all results as one HTML page.

    Args:
        share: s3://bucket/prefix to put the page in too, for readers without an account; empty for nowhere.
    """
    import json
    import shutil
    import tempfile
    from pathlib import Path

    from amlp.params import parse_params
    from amlp.registry.links import share_page
    from amlp.report import report

    settings = parse_params(json.loads(params), "params")
    with tempfile.TemporaryDirectory() as root:
        link_outputs(
            root,
            {
                "data/validate": validated.path,
                "data/shards": shards.path,
                "models/encoder": encoder.path,
                "models/segmenter": segmenter.path,
                "models/scratch": scratch.path,
                "evaluation": evaluation.path,
                "registration.json": registration.path,
            },
        )
        # The MLflow run gets the page under its file's name, and an artifact's own file has none that says HTML.
        html = Path(root, "report.html")
        report(params=settings, root=Path(root), out=html)
        if share:
            share_page(html, place=share, registration=Path(registration.path))
        shutil.copy(html, page.path)
