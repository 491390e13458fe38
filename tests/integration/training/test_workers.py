"""Two Ray Train workers (gloo) train like this one process."""

import pandas as pd
import pytest

from amlp.errors import UserError
from amlp.models.checkpoint import load_encoder
from amlp.training.finetune import finetune
from amlp.training.launch import launch
from amlp.training.pretrain import pretrain
from tests.support.tiny import settings, write_shards

STEPS = 20


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_two_workers_follow_the_loss_curve_of_one_process(cluster, tmp_path):
    shards = write_shards(tmp_path / "shards", cases=96)
    curves = {}
    for workers in (0, 2):
        pretraining = settings().pretrain.model_dump() | {"epochs": 4, "batch": 12, "num_workers": workers}
        out = tmp_path / f"encoder-{workers}"
        pretrain(params=settings(pretrain=pretraining), shards=shards, out=out, state=tmp_path / "state")
        curves[workers] = pd.read_csv(out / "steps.csv")
    one, two = (curves[workers].head(STEPS) for workers in (0, 2))
    assert len(one) == len(two) == STEPS
    for column in ("loss", "reconstruction", "rrl", "ccl", "grad_norm"):
        relative = ((one[column] - two[column]) / one[column].abs().clip(lower=1e-12)).abs().max()
        assert relative < 1e-3, f"{column} differs by {relative}"

    tuning = settings().finetune.model_dump() | {"num_workers": 2}
    metrics = finetune(
        params=settings(finetune=tuning),
        shards=shards,
        encoder=tmp_path / "encoder-2",
        out=tmp_path / "segmenter",
        state=tmp_path / "state",
    )
    assert metrics["labelled_images"] == 72
    load_encoder(tmp_path / "encoder-2" / "encoder.pt")


def _fail(config):
    raise UserError(f"worker says {config['word']}")


def test_a_workers_error_reaches_the_user_as_it_is(cluster, tmp_path):
    with pytest.raises(UserError, match=r"^worker says no$"):
        launch(_fail, {"word": "no"}, workers=1, folder=tmp_path / "ray" / "run")


def test_a_batch_that_two_workers_can_not_share_is_refused_at_once(tmp_path):
    shards = write_shards(tmp_path / "shards")
    params = settings(pretrain=settings().pretrain.model_dump() | {"batch": 7, "num_workers": 2})
    with pytest.raises(UserError, match=r"pretrain\.batch: 7 images can't be shared evenly by 2 workers"):
        pretrain(params=params, shards=shards, out=tmp_path / "encoder", state=tmp_path / "state")
