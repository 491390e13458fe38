"""Component of stage `pretrain`."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.common import log_figures, stage


@stage(additional_funcs=[log_figures])
def pretrain(params: str, state: str, shards: Input[Dataset], encoder: Output[Model], metrics: Output[Metrics]) -> None:
    """Pre-train the encoder without labels.

    Args:
        state: folder that outlives the task, from which a killed training goes on; empty when there is none.
    """
    import json
    import tempfile
    from pathlib import Path

    from amlp.environment import quiet
    from amlp.params import parse_params
    from amlp.training.pretrain import pretrain

    quiet()
    settings = parse_params(json.loads(params), "pretrain_params")
    with tempfile.TemporaryDirectory() as temporary:
        pretrain(params=settings, shards=Path(shards.path), out=Path(encoder.path), state=Path(state or temporary))
    log_figures(metrics, encoder.path)
