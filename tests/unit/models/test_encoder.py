import pytest
import torch

from amlp.models.encoder import Encoder, EncoderPlan


def build(**changes):
    torch.manual_seed(0)
    values = {"channels": 1, "height": 32, "width": 48, "patch": 8, "dim": 24, "depth": 2, "heads": 3} | changes
    return Encoder(EncoderPlan(**values)).eval()


@pytest.mark.parametrize(
    ("channels", "height", "width", "patch"), [(1, 32, 32, 8), (3, 32, 48, 8), (4, 28, 42, 14), (2, 30, 18, 6)]
)
def test_any_channels_and_any_size_that_the_patch_divides(channels, height, width, patch):
    encoder = build(channels=channels, height=height, width=width, patch=patch)
    images = torch.randn(2, channels, height, width)
    assert encoder(images).shape == (2, 1 + encoder.plan.patches, 24)
    maps = encoder.features(images, [0, 1])
    assert [tuple(m.shape) for m in maps] == [(2, 24, *encoder.plan.grid)] * 2


def test_seeing_all_patches_equals_no_selection():
    encoder, images = build(), torch.randn(2, 1, 32, 48)
    every = torch.arange(encoder.plan.patches).expand(2, -1)
    assert torch.allclose(encoder(images), encoder(images, every), atol=1e-6)


def test_permuting_patches_permutes_outputs():
    encoder, images = build(), torch.randn(2, 1, 32, 48)
    visible = torch.stack([torch.randperm(24)[:10] for _ in range(2)])
    order = torch.randperm(10)
    straight, permuted = encoder(images, visible), encoder(images, visible[:, order])
    assert torch.allclose(straight[:, 1:][:, order], permuted[:, 1:], atol=1e-5)
    assert torch.allclose(straight[:, 0], permuted[:, 0], atol=1e-5)


def test_hidden_patches_do_not_matter():
    encoder, images = build(), torch.randn(1, 1, 32, 48)
    changed = images.clone()
    changed[..., :8, :8] = 99.0
    visible = torch.arange(1, 24).unsqueeze(0)
    assert torch.equal(encoder(images, visible), encoder(changed, visible))
    assert not torch.equal(encoder(images), encoder(changed))
