from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from amlp.data.images import to_model_input
from amlp.models.checkpoint import load_encoder
from amlp.registry.encoder_model import _load_pyfunc
from tests.support.stage_outputs import PLAN, write_stage_outputs


def test_features_are_the_mean_patch_tokens_of_the_encoder(tmp_path: Path) -> None:
    write_stage_outputs(tmp_path)
    file = tmp_path / "models" / "encoder" / "encoder.pt"
    images = [np.random.default_rng(2).integers(0, 256, size, dtype=np.uint8) for size in ((40, 60), (32, 32, 3))]
    encoder, stats = load_encoder(file)
    pixels = np.stack([to_model_input(i, channels=PLAN.channels, height=32, width=32) for i in images])
    with torch.inference_mode():
        expected = encoder(stats.normalise(torch.tensor(pixels)))[:, 1:].mean(dim=1).numpy()

    model = _load_pyfunc(str(file))
    many, one = model.predict(images), model.predict(images[0])
    np.testing.assert_allclose(many, expected, rtol=1e-4, atol=1e-5)
    assert isinstance(one, np.ndarray) and one.shape == (PLAN.dim,) and one.dtype == np.float32
    np.testing.assert_array_equal(one, many[0])
