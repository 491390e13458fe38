import pytest
import torch

from amlp.models.encoder import EncoderPlan
from amlp.models.segmenter import build_network, lesion_probability
from amlp.models.unet import UNet


@pytest.mark.parametrize("size", [(16, 16), (40, 24)])
def test_it_answers_like_the_segmenter(size):
    torch.manual_seed(0)
    plan = EncoderPlan(channels=3, height=size[0], width=size[1], patch=8, dim=24, depth=2, heads=3)
    model = build_network("unet", plan, 8)
    assert isinstance(model, UNet)
    logits, presence = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 1, *size)
    assert torch.equal(presence, logits.flatten(1).max(dim=1).values)
    # Its presence bounds no pixel: the mask is the plain U-Net's.
    assert torch.equal(lesion_probability(logits, presence), logits[:, 0].sigmoid())


def test_an_images_result_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    plan = EncoderPlan(channels=1, height=32, width=32, patch=8, dim=24, depth=2, heads=3)
    model = build_network("unet", plan, 8).train()
    images = torch.randn(3, 1, 32, 32)
    assert torch.allclose(model(images)[0][:1], model(images[:1])[0], atol=1e-5)
