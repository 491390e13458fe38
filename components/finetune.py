"""Components of the stages `finetune` and `scratch`: the same training from different starts.

Two components, not one with an optional encoder: the back end does not cache a task with an optional artifact
(https://github.com/kubeflow/pipelines/issues/11410), and a task has the name of its component.
"""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.common import log_figures, stage, train


@stage
def finetune(
    params: str,
    gpus: str,
    shards: Input[Dataset],
    encoder: Input[Model],
    segmenter: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Train the segmenter on labelled images, from the pre-trained encoder.

    Args:
        gpus: of this task's pod, or of each worker of its Ray cluster.
    """
    train("finetune", params, gpus, shards.path, encoder.path, segmenter.path)
    log_figures(metrics, segmenter.path)


@stage
def scratch(
    params: str,
    gpus: str,
    shards: Input[Dataset],
    segmenter: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Train the segmenter from random weights, for comparison.

    Args:
        gpus: of this task's pod, or of each worker of its Ray cluster.
    """
    train("scratch", params, gpus, shards.path, "", segmenter.path)
    log_figures(metrics, segmenter.path)
