"""Component of stage `pretrain`."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from components.common import log_figures, stage, train


@stage
def pretrain(
    params: str,
    gpus: str,
    shards: Input[Dataset],
    encoder: Output[Model],
    metrics: Output[Metrics],
    page: Output[HTML],
) -> None:
    """Pre-train the encoder without labels.

    Args:
        gpus: of this task's pod, or of each worker of its Ray cluster.
    """
    from pathlib import Path

    from amlp.reporting.gallery import write_gallery

    train("pretrain", params, gpus, shards.path, "", encoder.path)
    log_figures(metrics, encoder.path)
    pictures = Path(encoder.path, "pictures")
    captions = {"reconstructions": "Reconstructions", "masks": "Masks over the epochs", "scores": "Lesion scores"}
    write_gallery(
        Path(page.path),
        title="Pre-training",
        pictures={caption: pictures / f"{name}.png" for name, caption in captions.items()},
    )
