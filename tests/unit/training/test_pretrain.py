from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from amlp.data.shards import ShardedSplit
from amlp.errors import ListedError, UserError
from amlp.files import read_json
from amlp.method.losses import Target
from amlp.models.checkpoint import load_encoder
from amlp.training.optim import check_finite
from amlp.training.pretrain import build_model, pretrain
from amlp.training.probe import Probe
from amlp.training.score_maps import ScoreMaps
from amlp.training.state import TrainingState
from tests.support.tiny import settings, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    pretrain(params=settings(), shards=shards, out=folder / "encoder", state=folder / "state")
    return folder / "encoder"


def test_it_writes_an_encoder_curves_and_pictures(trained):
    encoder, stats = load_encoder(trained / "encoder.pt")
    assert encoder.plan.dim == 24
    assert len(stats.mean) == 1
    history = pd.read_csv(trained / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert history["ratio"].is_monotonic_increasing
    assert history["visible_tokens"].is_monotonic_increasing
    steps = pd.read_csv(trained / "steps.csv")
    assert len(steps) == history["step"].iloc[-1]
    assert steps["ratio"].iloc[0] == pytest.approx(0.25)
    assert steps["ratio"].iloc[-1] == pytest.approx(0.75)
    for name in ("masks", "reconstructions", "scores"):
        with Image.open(trained / "pictures" / f"{name}.png") as picture:
            assert picture.width > 300


def test_lesions_are_masked_more_than_background(trained):
    drawn = pd.read_csv(trained / "history.csv")
    ratio = drawn["masked_lesion_share"] / drawn["masked_background_share"]
    assert (ratio.iloc[:2] > 1.3).all(), "before the untrained model takes part"
    rows = pd.read_csv(trained / "diagnostics.csv")
    assert rows["refine_weight"].iloc[-1] == settings().pretrain.mps.refine
    share = rows["category_share"]
    assert share.between(0.5 * share.iloc[0], 2 * share.iloc[0]).all(), "refinement keeps the lesion category alive"
    assert rows["score_enrichment"].iloc[0] > 1.5


def test_the_state_is_forgotten_once_the_outputs_are_written(trained):
    state = trained.parent / "state"
    assert not list(state.glob("pretrain-*"))


def test_same_seed_same_encoder_bit_for_bit(shards, trained, tmp_path):
    pretrain(params=settings(), shards=shards, out=tmp_path / "again", state=tmp_path / "state")
    assert (tmp_path / "again" / "encoder.pt").read_bytes() == (trained / "encoder.pt").read_bytes()


def test_all_parts_off_trains_too(shards, tmp_path):
    off = {"enabled": False}
    plain = settings().pretrain.model_dump() | {"epochs": 2, "mps": off, "amr": off, "rrl": off, "ccl": off}
    metrics = pretrain(params=settings(pretrain=plain), shards=shards, out=tmp_path / "mae", state=tmp_path / "state")
    assert metrics["loss"] == metrics["reconstruction"]
    assert set(pd.read_csv(tmp_path / "mae" / "history.csv")["ratio"]) == {0.75}


@pytest.mark.parametrize("target", get_args(Target))
def test_every_target_trains_and_is_shown(shards, tmp_path, target):
    params = settings(pretrain={"epochs": 2, "target": target})
    metrics = pretrain(params=params, shards=shards, out=tmp_path / "encoder", state=tmp_path / "state")
    assert np.isfinite(metrics["loss"])
    rows = pd.read_csv(tmp_path / "encoder" / "diagnostics.csv")
    assert np.isfinite(rows[["error_lesion", "error_background"]].to_numpy()).all()
    with Image.open(tmp_path / "encoder" / "pictures" / "reconstructions.png") as picture:
        columns = np.asarray(picture.convert("L"))[26:].reshape(-1, picture.width)
    shown = columns[:, -picture.width // 4 :]
    assert shown.std() > 5, "the last column shows something"


def test_an_odd_patch_has_no_quarters():
    with pytest.raises(ListedError, match=r"encoder\.patch must be even, is 3"):
        settings(encoder={"patch": 3}, preprocess={"height": 48, "width": 48}, pretrain={"target": "hog"})


def test_a_step_that_is_not_finite_is_skipped_and_the_training_ends_well(shards, tmp_path, monkeypatch):
    """One poisoned batch in the last epoch: its loss is not finite, the weights and the figures are."""
    import amlp.training.pretrain as module
    import amlp.training.session as session

    calls, real = [], module.views

    def poisoned(*args, **kwargs):
        images, lesion, cut = real(*args, **kwargs)
        calls.append(1)
        return (images * torch.nan if len(calls) == 12 else images), lesion, cut

    monkeypatch.setattr(module, "views", poisoned)
    monkeypatch.setattr(session, "check_finite", lambda norms, epoch: check_finite(norms, epoch=epoch, limit=0.5))
    pretrain(params=settings(), shards=shards, out=tmp_path / "encoder", state=tmp_path / "state")
    history = pd.read_csv(tmp_path / "encoder" / "history.csv")
    assert history["skipped"].tolist() == [0, 0, 0, 1]
    assert np.isfinite(history.to_numpy()).all()
    encoder, _ = load_encoder(tmp_path / "encoder" / "encoder.pt")
    assert all(torch.isfinite(p).all() for p in encoder.parameters())


def test_the_same_training_twice_at_once_is_refused(shards, tmp_path):
    state = TrainingState(tmp_path / "state" / "pretrain-x")
    with state.locked(), pytest.raises(UserError, match="another process runs this very training"), state.locked():
        pass
    with state.locked():
        pass


def test_an_interrupted_training_reports_the_same_as_an_uninterrupted_one(shards, trained, tmp_path, monkeypatch):
    import amlp.training.pretrain as module

    calls, real = [], module.views

    def interrupted(*args, **kwargs):
        calls.append(1)
        # The third of four epochs of three steps.
        if len(calls) == 8:
            raise InterruptedError("a power cut")
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "views", interrupted)
    arguments = {"params": settings(), "shards": shards, "out": tmp_path / "encoder", "state": tmp_path / "state"}
    with pytest.raises(Exception, match="a power cut"):
        pretrain(**arguments)
    assert not (tmp_path / "encoder").exists()
    metrics = pretrain(**arguments)
    assert len(calls) == 8 + 6, "it went on after the second epoch"
    expected = read_json(trained / "metrics.json")
    assert 0 < expected["probe_auc_untrained"] < 1 and 0 < expected["probe_auc"] < 1
    assert metrics | {"seconds": 0} == expected | {"seconds": 0}
    for file in ("encoder.pt", "diagnostics.csv", "scores.npy"):
        assert (tmp_path / "encoder" / file).read_bytes() == (trained / file).read_bytes(), file


def test_the_scores_after_refinement_are_kept(shards, trained):
    scores = np.load(trained / "scores.npy")
    clusters = ShardedSplit.open(shards, "train").scores(np.arange(18))
    assert scores.shape == clusters.shape == (18, 4, 4) and scores.dtype == np.float32
    assert scores.min() >= 0 and scores.max() <= 1 and not np.array_equal(scores, clusters)
    # Refinement decides which patches are lesion and not how many, so what is kept is neither all nor none.
    assert ((scores > 0.5).sum(axis=(1, 2)) == (clusters > 0.5).sum(axis=(1, 2))).all()
    # What is kept is what the last epochs masked by.
    assert pd.read_csv(trained / "diagnostics.csv")["category_share"].iloc[-1] > 0


def test_the_parts_ramps_follow_the_training(shards, tmp_path, monkeypatch):
    import amlp.training.pretrain as module

    seen, real = [], module.amlp_loss

    def said(*args, **kwargs):
        seen.append(kwargs["progress"])
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "amlp_loss", said)
    pretrain(params=settings(), shards=shards, out=tmp_path / "encoder", state=tmp_path / "state")
    assert seen == pytest.approx([step / len(seen) for step in range(len(seen))]) and len(seen) > 4


def test_the_probe_is_that_of_the_first_and_the_last_weights(shards, trained):
    rows, metrics = pd.read_csv(trained / "diagnostics.csv"), read_json(trained / "metrics.json")
    assert metrics["probe_auc"] == rows["probe_auc"].iloc[-1]
    encoder, inputs = load_encoder(trained / "encoder.pt")
    split = ShardedSplit.open(shards, "train")
    probe = Probe(split, plan=encoder.plan, stats=inputs, seed=settings().seed, device=torch.device("cpu"))
    assert probe.auc(encoder) == pytest.approx(metrics["probe_auc"], abs=1e-5)
    torch.manual_seed(settings().seed)
    untrained = build_model(encoder.plan, settings().pretrain).encoder
    assert probe.auc(untrained) == pytest.approx(metrics["probe_auc_untrained"], abs=1e-5)


def test_training_without_any_mask_works(tmp_path):
    shards = write_shards(tmp_path / "shards")
    index = pd.read_parquet(shards / "index.parquet")
    index["labelled"], index["lesion_fraction"] = False, np.nan
    index.to_parquet(shards / "index.parquet")
    params = settings(pretrain={"epochs": 1})
    pretrain(params=params, shards=shards, out=tmp_path / "encoder", state=tmp_path / "state")
    rows = pd.read_csv(tmp_path / "encoder" / "diagnostics.csv")
    assert "score_recall" not in rows and rows["probe_auc"].isna().all()
    assert pd.read_csv(tmp_path / "encoder" / "history.csv")["masked_lesion_share"].isna().all()
    assert not [name for name in read_json(tmp_path / "encoder" / "metrics.json") if name.startswith("probe")]


def test_a_patch_that_does_not_divide_the_images_is_refused(shards, tmp_path):
    params = settings(encoder={"patch": 12}, preprocess={"height": 48, "width": 48})
    with pytest.raises(UserError, match="can't be cut into patches of 12 px"):
        pretrain(params=params, shards=shards, out=tmp_path / "encoder", state=tmp_path / "state")
    assert not (tmp_path / "encoder").exists()


def test_refinement_decides_which_patches_are_lesion_and_not_how_many():
    random = np.random.default_rng(0)
    clusters = np.zeros((3, 4, 4), np.float32)
    clusters[0, 0, :3] = 1
    clusters[1, 2:] = 0.9
    categories = (0.01 * random.random((3, 4, 4))).astype(np.float32)  # a head that sees no lesion anywhere
    maps = ScoreMaps(clusters)
    maps.refine(categories, 0.999)
    refined = maps.current > 0.5
    assert refined.sum(axis=(1, 2)).tolist() == [3, 8, 0]
    chosen = set(np.flatnonzero(refined[0]))
    assert chosen == set(np.argsort(categories[0].ravel())[-3:])
    maps.refine(categories, 0.0)
    assert np.allclose(maps.current, clusters)
