from dataclasses import asdict

import numpy as np
import pytest
import torch

from amlp.models.checkpoint import save
from amlp.models.encoder import EncoderPlan
from amlp.models.predictor import Predictor
from amlp.models.segmenter import Segmenter


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    torch.manual_seed(0)
    plan = EncoderPlan(channels=1, height=32, width=48, patch=8, dim=24, depth=2, heads=3)
    path = tmp_path_factory.mktemp("model") / "segmenter.pt"
    save(
        path,
        {
            "kind": "amlp-segmenter",
            "plan": asdict(plan),
            "channels": 8,
            "input": {"mean": (0.4,), "std": (0.2,)},
            "flip_average": True,
            "state": Segmenter(plan, 8).state_dict(),
        },
    )
    return Predictor.load(path)


@pytest.mark.parametrize("shape", [(32, 48), (1, 1), (7, 200), (300, 31, 3), (40, 40, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_mask_has_the_size_of_the_image(predictor, shape, dtype):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)
    mask = predictor.mask(image)
    assert mask.shape == shape[:2]
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1}


def test_flip_average_makes_the_prediction_mirror_with_the_image(predictor):
    image = np.random.default_rng(1).integers(0, 255, (32, 48), dtype=np.uint8)
    straight, mirrored = predictor.probability(image), predictor.probability(image[:, ::-1])
    assert np.allclose(straight, mirrored[:, ::-1], atol=1e-5)


def test_the_same_image_gives_the_same_probabilities(predictor):
    image = np.random.default_rng(2).integers(0, 255, (50, 60), dtype=np.uint8)
    assert np.array_equal(predictor.probability(image), predictor.probability(image.copy()))
