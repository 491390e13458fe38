"""Components of the stages `finetune` and `scratch`: the same training from different starts.

Two components, not one with an optional encoder: the back end does not cache a task with an optional artifact
(https://github.com/kubeflow/pipelines/issues/11410), and a task has the name of its component.
"""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.common import log_figures, stage


@stage(additional_funcs=[log_figures])
def finetune(
    params: str,
    state: str,
    shards: Input[Dataset],
    encoder: Input[Model],
    segmenter: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Train the segmenter on labelled images, from the pre-trained encoder.

    Args:
        state: folder that outlives the task, from which a killed training goes on; empty when there is none.
    """
    import json
    import tempfile
    from pathlib import Path

    from amlp.environment import quiet
    from amlp.params import parse_params
    from amlp.training.finetune import finetune

    quiet()
    settings = parse_params(json.loads(params), "finetune_params")
    with tempfile.TemporaryDirectory() as temporary:
        finetune(
            params=settings,
            shards=Path(shards.path),
            encoder=Path(encoder.path),
            out=Path(segmenter.path),
            state=Path(state or temporary),
        )
    log_figures(metrics, segmenter.path)


@stage(additional_funcs=[log_figures])
def scratch(
    params: str, state: str, shards: Input[Dataset], segmenter: Output[Model], metrics: Output[Metrics]
) -> None:
    """Train the segmenter from random weights, for comparison.

    Args:
        state: folder that outlives the task, from which a killed training goes on; empty when there is none.
    """
    import json
    import tempfile
    from pathlib import Path

    from amlp.environment import quiet
    from amlp.params import parse_params
    from amlp.training.finetune import finetune

    quiet()
    settings = parse_params(json.loads(params), "finetune_params")
    with tempfile.TemporaryDirectory() as temporary:
        finetune(
            params=settings,
            shards=Path(shards.path),
            encoder=None,
            out=Path(segmenter.path),
            state=Path(state or temporary),
        )
    log_figures(metrics, segmenter.path)
