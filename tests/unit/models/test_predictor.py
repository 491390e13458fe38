from dataclasses import asdict

import numpy as np
import pytest
import torch

from amlp.errors import UserError
from amlp.models.checkpoint import save
from amlp.models.encoder import EncoderPlan
from amlp.models.predictor import Prediction, Predictor
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


def test_a_prediction_holds_what_the_single_functions_return(predictor):
    image = np.random.default_rng(3).integers(0, 255, (50, 60), dtype=np.uint8)
    found = predictor.segment(image)
    assert np.array_equal(found.probability, predictor.probability(image))
    assert np.array_equal(found.mask, predictor.mask(image))
    assert found.area == found.mask.sum()
    assert found.probability.max() <= found.presence <= 1


def test_a_batch_gives_each_image_what_it_gets_alone(predictor):
    random = np.random.default_rng(4)
    images = [random.integers(0, 255, shape, dtype=np.uint8) for shape in ((50, 60), (9, 31, 3), (64, 20))]
    logits, presence = predictor.logits(torch.from_numpy(np.stack([predictor.prepare(image) for image in images])))
    for number, image in enumerate(images):
        one = slice(number, number + 1)
        found = predictor.finish(logits[one], presence[one], image.shape[:2])
        assert np.abs(found.probability - predictor.probability(image)).max() < 1e-5


def test_a_list_gives_masks_and_probabilities_of_the_images_own_sizes(predictor):
    random = np.random.default_rng(5)
    shapes = [(50, 60), (9, 31, 3), (64, 20, 1), (8, 8, 4)] * 5  # more than the model sees at a time
    images = [random.integers(0, 255, shape, dtype=np.uint8) for shape in shapes]
    masks, probabilities = predictor.predict(images), predictor.probabilities(images)
    for image, mask, probability in zip(images, masks, probabilities, strict=True):
        assert mask.shape == probability.shape == image.shape[:2]
        assert (mask.dtype, probability.dtype) == (np.bool_, np.float32)
        assert np.array_equal(mask, probability > 0.5)
        assert np.abs(probability - predictor.probability(image)).max() < 1e-5
    assert predictor.predict([]) == predictor.probabilities(()) == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((20, 30), np.uint8), r"images: ndarray \(20, 30\), expected a list of arrays; \[image\] for one"),
        ([np.zeros((20, 30)), np.zeros((3, 20, 30))], r"images\[1\]: shape \(3, 20, 30\) has 30 channel\(s\)"),
        ([np.full((20, 30), np.nan)], r"images\[0\]: holds values that are not finite"),
        (["image.png"], r"images\[0\]: str, expected an array of numbers"),
        ([np.array([["a"]])], r"images\[0\]: array of <U1, expected an array of numbers"),
    ],
)
def test_what_is_no_list_of_images_is_refused_by_its_number(predictor, images, message):
    for ask in (predictor.predict, predictor.probabilities):
        with pytest.raises(UserError, match=message):
            ask(images)


def uncertainty(*values):
    return Prediction(np.array([values], dtype=np.float32), presence=1.0).uncertainty


def test_uncertainty_is_none_where_all_is_certain():
    assert uncertainty(1, 1, 0, 0) == uncertainty(0, 0, 0, 0) == uncertainty(1, 1) == 0


def test_uncertainty_is_one_less_the_expected_overlap():
    # Expected intersection 0.9 + 0.6, expected union 2 + 0.2.
    assert uncertainty(0.9, 0.6, 0.2, 0) == pytest.approx(1 - 1.5 / 2.2)


def test_uncertainty_of_an_empty_mask_is_the_largest_probability():
    assert uncertainty(0.1, 0.3, 0) == pytest.approx(0.3)
    assert uncertainty(*[0.01] * 1000) == pytest.approx(0.01), "not more in larger images"


def test_uncertainty_grows_as_any_probability_nears_one_half():
    values = [0.95, 0.8, 0.2, 0.05]
    for number, nearer in enumerate((0.9, 0.7, 0.3, 0.1)):
        changed = [*values]
        changed[number] = nearer
        assert uncertainty(*values) < uncertainty(*changed) <= 1
