from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

from amlp.data.images import write_png
from amlp.errors import UserError
from amlp.models.predictor import Predictor
from amlp.registry.segmenter_model import _load_pyfunc
from tests.stage_outputs import write_stage_outputs


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write_stage_outputs(root)
    return root / "models" / "segmenter" / "segmenter.pt"


def test_masks_are_the_predictor_s_whatever_form_the_image_has(weights: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    predictor, model = Predictor.load(weights), _load_pyfunc(str(weights))
    for image in (
        random.integers(0, 256, (50, 71), dtype=np.uint8),
        random.integers(0, 65536, (33, 20), dtype=np.uint16),
        random.integers(0, 256, (24, 90, 3), dtype=np.uint8),
    ):
        expected = predictor.mask(image)
        write_png(tmp_path / "image.png", image)
        content = (tmp_path / "image.png").read_bytes()
        assert 0 < expected.mean() < 1, "the test can't tell masks apart"
        for data in (image, content, base64.b64encode(content).decode()):
            mask = model.predict(data)
            assert isinstance(mask, np.ndarray)
            assert mask.dtype == np.uint8 and mask.shape == image.shape[:2]
            np.testing.assert_array_equal(mask, expected)


def test_list_gives_a_list_of_masks_of_the_images_sizes(weights: Path) -> None:
    masks = _load_pyfunc(str(weights)).predict([np.zeros((31, 44), np.uint8), np.zeros((80, 12, 3), np.uint8)])
    assert isinstance(masks, list)
    assert [mask.shape for mask in masks] == [(31, 44), (80, 12)]


def test_several_images_in_one_array_are_refused(weights: Path) -> None:
    with pytest.raises(UserError, match=r"shape \(5, 32, 32\)"):
        _load_pyfunc(str(weights)).predict(np.zeros((5, 32, 32), np.uint8))
