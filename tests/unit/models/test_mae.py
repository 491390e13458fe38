import torch

from amlp.models.encoder import EncoderPlan
from amlp.models.mae import MaskedAutoencoder
from amlp.params import DecoderParams

PLAN = EncoderPlan(channels=2, height=32, width=48, patch=8, dim=24, depth=2, heads=3)


def build(categories=True):
    torch.manual_seed(0)
    return MaskedAutoencoder(PLAN, DecoderParams(dim=24, depth=1, heads=3), categories=categories).eval()


def test_shapes():
    model, images = build(), torch.randn(3, 2, 32, 48)
    masked, visible = torch.arange(10).expand(3, -1), torch.arange(10, 24).expand(3, -1)
    pixels, logits = model(images, masked, visible)
    assert pixels.shape == (3, 10, 8 * 8 * 2)
    assert logits.shape == (3, 24)
    assert build(categories=False)(images, masked, visible)[1] is None


def test_pixels_follow_the_order_of_the_masked_patches():
    model, images = build(), torch.randn(1, 2, 32, 48)
    masked, visible = torch.arange(10).unsqueeze(0), torch.arange(10, 24).unsqueeze(0)
    order = torch.randperm(10)
    straight, permuted = model(images, masked, visible)[0], model(images, masked[:, order], visible)[0]
    assert torch.allclose(straight[:, order], permuted, atol=1e-5)


def test_the_masked_patches_content_is_never_seen():
    model, images = build(), torch.randn(1, 2, 32, 48)
    changed = images.clone()
    changed[..., :8, :] = 99.0
    masked, visible = torch.arange(6).unsqueeze(0), torch.arange(6, 24).unsqueeze(0)
    assert torch.equal(model(images, masked, visible)[0], model(changed, masked, visible)[0])


def test_categories_are_probabilities_of_every_patch():
    probability = build().categories(torch.randn(2, 2, 32, 48))
    assert probability.shape == (2, 24)
    assert ((probability >= 0) & (probability <= 1)).all()
