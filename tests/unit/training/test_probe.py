from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from amlp.data.shards import ShardedSplit, read_stats
from amlp.models.checkpoint import InputStats
from amlp.models.encoder import Encoder, EncoderPlan
from amlp.training.probe import Probe, area_under_curve
from tests.support.tiny import PATCH, SIZE, write_shards

PLAN = EncoderPlan(channels=1, height=SIZE, width=SIZE, patch=PATCH, dim=24, depth=2, heads=3)


class Told(Encoder):
    """An encoder whose features hold what it was said of each image's patches, spread by a random matrix, in noise.

    Args:
        answers: (n, L), as the probe will ask for them: those that fit, then those that score.
    """

    def __init__(self, answers: torch.Tensor, *, noise: float) -> None:
        super().__init__(PLAN)
        random = torch.Generator().manual_seed(0)
        self.values = answers[..., None].float() * torch.randn(PLAN.dim, generator=random)
        self.values += noise * torch.randn(self.values.shape, generator=random)
        self.asked = 0

    def features(self, images: torch.Tensor, layers: list[int]) -> list[torch.Tensor]:
        assert layers == [PLAN.depth - 1], "the last block"
        part = self.values[self.asked : self.asked + len(images)]
        self.asked += len(images)
        return [part.mT.reshape(len(images), PLAN.dim, *PLAN.grid)]


def probe(shards: Path, seed: int = 0) -> Probe:
    stats = read_stats(shards)
    return Probe(
        ShardedSplit.open(shards, "train"), plan=PLAN, stats=InputStats(mean=stats.mean, std=stats.std), seed=seed,
        device=torch.device("cpu"),
    )  # fmt: skip


def relabel(shards: Path, **columns: object) -> None:
    index = pd.read_parquet(shards / "index.parquet")
    index.assign(**columns).to_parquet(shards / "index.parquet")


def answers(shards: Path, found: Probe) -> torch.Tensor:
    masks = ShardedSplit.open(shards, "train").masks(np.concatenate([found.fitted, found.scored]))
    return F.avg_pool2d(torch.from_numpy(masks).float()[:, None], PATCH).flatten(1) >= 0.3


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("probe") / "shards", cases=160)


def test_features_that_hold_the_answer_score_one_and_noise_scores_a_half(shards: Path) -> None:
    found = probe(shards)
    truth = answers(shards, found)
    assert found.auc(Told(truth, noise=0.1)) > 0.999
    assert 0.6 < found.auc(Told(truth, noise=6.0)) < 0.999
    assert found.auc(Told(torch.zeros_like(truth), noise=1.0)) == pytest.approx(0.5, abs=0.08)
    # What is linear in the features counts, whichever way it points.
    assert found.auc(Told(~truth, noise=0.1)) > 0.999


def test_no_group_fits_and_scores(shards: Path) -> None:
    groups = ShardedSplit.open(shards, "train").index["group"].to_numpy()
    for seed in range(5):
        found = probe(shards, seed)
        assert len(found.fitted) and len(found.scored)
        assert not set(groups[found.fitted]) & set(groups[found.scored])
    assert not np.array_equal(probe(shards, 0).fitted, probe(shards, 1).fitted)
    np.testing.assert_array_equal(probe(shards, 0).scored, probe(shards, 0).scored)


def test_both_halves_hold_all_labels_although_rows_are_sorted_by_them(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", cases=400)
    index = pd.read_parquet(shards / "index.parquet")
    relabel(shards, label=np.where(index["group"] < 100, "benign", "malignant"))
    labels = ShardedSplit.open(shards, "train").index["label"].to_numpy()
    found = probe(shards)
    for rows in (found.fitted, found.scored):
        assert 0.2 < (labels[rows] == "benign").mean() < 0.8
    assert (len(found.fitted), len(found.scored)) == (32, 96)


def test_only_images_with_a_lesion_count(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", cases=40)
    index = pd.read_parquet(shards / "index.parquet")
    relabel(shards, labelled=index["group"] % 2 == 0, lesion_fraction=np.where(index["group"] % 4 == 0, 0.2, 0.0))
    found = probe(shards)
    groups = ShardedSplit.open(shards, "train").index["group"].to_numpy()
    assert set(groups[np.concatenate([found.fitted, found.scored])] % 4) == {0}


def test_it_is_undefined_without_what_it_needs(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", cases=24)
    encoder = Encoder(PLAN)
    relabel(shards, group=0)
    assert np.isnan(probe(shards).auc(encoder)), "one group can't fit and score"
    relabel(shards, labelled=False)
    assert np.isnan(probe(shards).auc(encoder)), "no masks"
    masks = shards / "train-masks-00000.npy"
    relabel(shards, labelled=True, group=np.arange(24))
    np.save(masks, np.zeros_like(np.load(masks)))
    assert np.isnan(probe(shards).auc(encoder)), "no patch that lesion covers by half"


@given(
    pairs=st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40).filter(
        lambda pairs: len({positive for _, positive in pairs}) == 2
    )
)
def test_the_area_under_the_curve_counts_ties_half(pairs: list[tuple[int, bool]]) -> None:
    scores, positive = (torch.tensor(values) for values in zip(*pairs, strict=True))
    assert area_under_curve(scores, positive) == pytest.approx(roc_auc_score(positive.numpy(), scores.numpy()))


@given(scores=st.lists(st.floats(-1, 1), max_size=5), positive=st.booleans())
def test_the_area_is_undefined_for_one_kind_alone(scores: list[float], positive: bool) -> None:
    assert np.isnan(area_under_curve(torch.tensor(scores), torch.full((len(scores),), positive)))
