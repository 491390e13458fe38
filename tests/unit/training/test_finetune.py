import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from amlp.data.shards import ShardedSplit
from amlp.errors import UserError
from amlp.files import read_json
from amlp.models.encoder import EncoderPlan
from amlp.models.predictor import Predictor
from amlp.models.segmenter import Segmenter, build_network, lesion_probability
from amlp.models.unet import UNet
from amlp.training.finetune import finetune
from amlp.training.pretrain import pretrain
from amlp.training.segmentation import dice_scores, layer_groups, segmentation_loss
from amlp.training.state import TrainingState
from tests.support.tiny import SIZE, settings, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def encoder(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    pretrain(params=settings(pretrain={"epochs": 1}), shards=shards, out=folder / "encoder", state=folder / "state")
    return folder / "encoder"


def test_it_learns_from_an_encoder_and_reports_what_was_loaded(shards, encoder, tmp_path):
    params = settings(finetune={"epochs": 12, "batch": 6, "channels": 8, "lr": 0.005})
    metrics = finetune(params=params, shards=shards, encoder=encoder, out=tmp_path / "segmenter", state=tmp_path / "s")
    history = pd.read_csv(tmp_path / "segmenter" / "history.csv")
    assert metrics["val_dsc"] > 0.7
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert metrics["val_dsc"] == pytest.approx(history["val_dsc"].max(), abs=1e-5)
    assert metrics["best_epoch"] == history["val_dsc"].idxmax() + 1
    loading = read_json(tmp_path / "segmenter" / "loading.json")
    assert loading["matched"]
    assert loading["missing"] == []
    Predictor.load(tmp_path / "segmenter" / "segmenter.pt")


def test_from_scratch_loads_nothing_and_repeats_exactly(shards, tmp_path):
    for name in ("one", "two"):
        finetune(params=settings(), shards=shards, encoder=None, out=tmp_path / name, state=tmp_path / "state")
    assert read_json(tmp_path / "one" / "loading.json") is None
    assert (tmp_path / "one" / "segmenter.pt").read_bytes() == (tmp_path / "two" / "segmenter.pt").read_bytes()


def test_an_encoder_of_another_width_stops_the_stage_before_it_writes(shards, encoder, tmp_path):
    params = settings(encoder={"patch": 8, "dim": 48, "depth": 2, "heads": 3})
    with pytest.raises(UserError, match=r"only .* of the encoder's tensors fit"):
        finetune(params=params, shards=shards, encoder=encoder, out=tmp_path / "segmenter", state=tmp_path / "state")
    assert not (tmp_path / "segmenter").exists()


def test_a_unet_is_trained_by_the_same_loop_and_comes_back_as_it_was(shards, tmp_path):
    params = settings(finetune={"epochs": 2, "network": "unet"})
    metrics = finetune(params=params, shards=shards, encoder=None, out=tmp_path / "unet", state=tmp_path / "state")
    predictor = Predictor.load(tmp_path / "unet" / "segmenter.pt")
    assert isinstance(predictor.model, UNet)
    val = ShardedSplit.open(shards, "val")
    rows = np.arange(len(val.index))
    pixels, masks = torch.from_numpy(val.images(rows)), torch.from_numpy(val.masks(rows))
    with torch.inference_mode():
        probability = lesion_probability(*predictor.model(predictor.stats.normalise(pixels)))
    assert dice_scores(probability, masks).mean().item() == pytest.approx(metrics["val_dsc"], abs=1e-5)


def test_a_unet_takes_no_encoder(shards, encoder, tmp_path):
    params = settings(finetune={"network": "unet"})
    with pytest.raises(UserError, match=r"finetune\.network: unet .*--from-scratch"):
        finetune(params=params, shards=shards, encoder=encoder, out=tmp_path / "unet", state=tmp_path / "state")


def test_pseudo_labels_teach_where_lesions_are_before_a_mask_is_seen(shards, tmp_path):
    """With too little training for masks alone, and pseudo-labels that are right."""
    found = {}
    for source in ("none", "clusters"):
        values = {"epochs": 1, "lr": 0.005, "pseudo_labels": source, "pseudo_label_epochs": 12}
        metrics = finetune(
            params=settings(finetune=values),
            shards=shards,
            encoder=None,
            out=tmp_path / source,
            state=tmp_path / "state",
        )
        found[source] = metrics
    assert found["clusters"]["pseudo_label_seconds"] > 0 == found["none"]["pseudo_label_seconds"]
    history = {name: pd.read_csv(tmp_path / name / "history.csv") for name in found}
    assert [len(table) for table in history.values()] == [1, 1]
    assert history["clusters"]["loss"].iloc[0] < 0.9 * history["none"]["loss"].iloc[0]
    assert not list((tmp_path / "state").glob("finetune-*"))


def test_pseudo_labels_say_nothing_about_the_presence_of_a_lesion(shards, tmp_path, monkeypatch):
    """Each image has some lesion category, so learning presence from them would make every image ill."""
    monkeypatch.setattr(TrainingState, "discard", lambda self: None)
    params = settings(finetune={"epochs": 1, "lr": 0.005, "weight_decay": 0.0, "pseudo_labels": "clusters"})
    finetune(params=params, shards=shards, encoder=None, out=tmp_path / "out", state=tmp_path / "state")
    [checkpoint] = (tmp_path / "state").glob("finetune-*/pseudo-labels/last.pt")
    learnt = torch.load(checkpoint, weights_only=True)["model"]
    plan = EncoderPlan(channels=1, height=SIZE, width=SIZE, **params.encoder.model_dump())
    torch.manual_seed(params.seed)
    fresh = build_network("vit", plan, params.finetune.channels).state_dict()
    assert {name for name in fresh if torch.equal(fresh[name], learnt[name])} >= {"presence.weight", "presence.bias"}
    assert not torch.equal(fresh["head.weight"], learnt["head.weight"]), "the pseudo-labels taught something"


def test_pseudo_labels_of_other_images_are_refused(shards, encoder, tmp_path):
    other = shutil.copytree(encoder, tmp_path / "encoder")
    # As many images in another order, as another split of the same data would be.
    moved = shutil.copytree(shards, tmp_path / "shards")
    index = pd.read_parquet(moved / "index.parquet")
    index["case_id"] = index["case_id"].to_numpy()[::-1]
    index.to_parquet(moved / "index.parquet")
    with pytest.raises(
        UserError, match=r"scores\.json: .* not those of the 18 training images .*finetune\.pseudo_labels"
    ):
        finetune(params=settings(), shards=moved, encoder=other, out=tmp_path / "out", state=tmp_path / "state")
    assert not (tmp_path / "out").exists()
    off = settings(finetune={"pseudo_labels": "none"})
    finetune(params=off, shards=shards, encoder=other, out=tmp_path / "out", state=tmp_path / "state")


def test_an_encoder_pretrained_without_categories_brings_no_pseudo_labels(shards, tmp_path):
    off = {"enabled": False}
    plain = settings(pretrain={"epochs": 1, "mps": off, "amr": off, "rrl": off, "ccl": off})
    pretrain(params=plain, shards=shards, out=tmp_path / "mae", state=tmp_path / "state")
    assert not np.load(tmp_path / "mae" / "scores.npy").any()
    finetune(params=settings(), shards=shards, encoder=tmp_path / "mae", out=tmp_path / "a", state=tmp_path / "state")
    assert read_json(tmp_path / "a" / "metrics.json")["pseudo_label_seconds"] == 0


def test_from_scratch_there_are_no_pretrained_pseudo_labels(shards, tmp_path):
    metrics = finetune(params=settings(), shards=shards, encoder=None, out=tmp_path / "a", state=tmp_path / "state")
    assert metrics["pseudo_label_seconds"] == 0


def test_validation_every_few_epochs_and_after_the_last(shards, tmp_path):
    params = settings(finetune={"epochs": 5, "validate_epochs": 2})
    metrics = finetune(params=params, shards=shards, encoder=None, out=tmp_path / "out", state=tmp_path / "state")
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert history["epoch"][history["val_dsc"].notna()].tolist() == [2, 4, 5]
    assert metrics["best_epoch"] == history["epoch"][history["val_dsc"].idxmax()]
    assert metrics["val_dsc"] == pytest.approx(history["val_dsc"].max(), abs=1e-5)


def test_a_perfect_prediction_has_no_loss_and_full_score():
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, 0, 2:5, 2:5] = 1
    logits = (masks * 2 - 1) * 50
    presence = torch.tensor([50.0, -50.0])
    assert segmentation_loss(logits, presence, masks).item() == pytest.approx(0, abs=1e-6)
    assert segmentation_loss(logits, -presence, masks).item() > 1
    assert segmentation_loss(-logits, presence, masks).item() > 1
    probability = lesion_probability(logits, presence)
    assert dice_scores(probability, masks[:, 0]).tolist() == [1, 1]
    assert dice_scores(1 - probability, masks[:, 0]).tolist() == [0, 0]


def test_an_image_without_lesion_has_no_lesion_pixel():
    probability = lesion_probability(torch.full((2, 1, 4, 4), 3.0), torch.tensor([2.0, -1.0]))
    assert (probability[0] > 0.5).all()
    assert (probability[1] < 0.5).all()


def test_layers_near_the_input_learn_slower():
    model = Segmenter(EncoderPlan(channels=1, height=32, width=32, patch=8, dim=24, depth=3, heads=3), 8)
    groups = layer_groups(model, 0.5)
    assert [group["scale"] for group in groups] == [0.0625, 0.125, 0.25, 0.5, 1.0]
    names = {name for group in groups for name, _ in group["parameters"]}
    assert names == {name for name, _ in model.named_parameters()}
    top = {name for name, _ in groups[-1]["parameters"]}
    assert "head.weight" in top and "encoder.vit.norm.weight" in top
