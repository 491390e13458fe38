"""Component of stage `evaluate`."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components.common import log_figures, stage


@stage
def evaluate(
    params: str,
    cases: Input[Dataset],
    shards: Input[Dataset],
    segmenter: Input[Model],
    scratch: Input[Model],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    page: Output[HTML],
) -> None:
    """Score the segmenter and its baselines on the test split."""
    import json
    from pathlib import Path

    from amlp.evaluation.evaluate import evaluate
    from amlp.params import parse_params
    from amlp.reporting.gallery import write_gallery

    settings = parse_params(json.loads(params), "evaluate_params")
    evaluate(
        params=settings.evaluate,
        seed=settings.seed,
        ingest=Path(cases.path),
        shards=Path(shards.path),
        segmenter=Path(segmenter.path),
        scratch=Path(scratch.path),
        out=Path(evaluation.path),
    )
    log_figures(metrics, evaluation.path)
    overlays = Path(evaluation.path, "overlays")
    captions = {"best": "Best test images", "median": "Typical test images", "worst": "Worst test images"}
    write_gallery(
        Path(page.path),
        title="Test images with a lesion, true and predicted masks",
        pictures={caption: overlays / f"{name}.png" for name, caption in captions.items()},
    )
