import pytest
import torch

from amlp.method.objective import amlp_loss
from amlp.method.sampling import choose_patches
from amlp.models.encoder import EncoderPlan
from amlp.models.mae import MaskedAutoencoder
from amlp.params import AmrParams, CclParams, DecoderParams, MpsParams, PretrainParams, RrlParams

PLAN = EncoderPlan(channels=1, height=32, width=48, patch=8, dim=24, depth=2, heads=3)
DECODER = DecoderParams(dim=24, depth=1, heads=3)
OFF = PretrainParams(
    target="normalised",
    decoder=DECODER,
    amr=AmrParams(enabled=False),
    mps=MpsParams(enabled=False),
    rrl=RrlParams(enabled=False),
    ccl=CclParams(enabled=False),
)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    images = torch.randn(3, 1, 32, 48, generator=g)
    lesion = torch.rand(3, PLAN.patches, generator=g) < 0.3
    masked, visible = choose_patches(lesion, torch.rand(3, PLAN.patches, generator=g), ratio=0.75, params=OFF.mps)
    return images, lesion, masked, visible


def build(settings):
    torch.manual_seed(0)
    return MaskedAutoencoder(PLAN, DECODER, categories=settings.ccl.enabled)


def test_all_parts_off_is_mae_to_floating_point():
    """Against transformers' own model with the same weights and the same masks: equal predictions, equal loss."""
    pytest.importorskip("transformers", reason="the peer implementation comes with the development dependencies")
    from benchmarks.bench_pretrain import to_transformers

    plan = EncoderPlan(channels=1, height=32, width=32, patch=8, dim=24, depth=2, heads=3)
    torch.manual_seed(0)
    model = MaskedAutoencoder(plan, DECODER, categories=False).eval()
    theirs = to_transformers(model, DECODER).eval()
    images, noise = torch.randn(3, 1, 32, 32), torch.rand(3, plan.patches)
    masked, visible = choose_patches(torch.rand(3, 16) < 0.3, noise, ratio=0.75, params=OFF.mps)

    losses = amlp_loss(model, images, torch.zeros(3, 16).bool(), masked, visible, patch=8, settings=OFF, progress=1.0)
    expected = theirs(images, noise=1 - noise)  # theirs keeps the lowest noise, ours masks it
    pixels, _ = model(images, masked, visible)
    assert torch.allclose(pixels, expected.logits.gather(1, masked.unsqueeze(-1).expand(-1, -1, 64)), atol=1e-5)
    assert torch.allclose(losses.total, expected.loss, rtol=1e-6, atol=0)
    assert torch.equal(losses.total, losses.reconstruction)
    assert losses.ccl == 0


def test_rrl_before_its_ramp_is_the_plain_loss_bit_for_bit(batch):
    images, lesion, masked, visible = batch
    model = build(OFF)
    plain = amlp_loss(model, images, lesion, masked, visible, patch=8, settings=OFF, progress=0.0)
    settings = OFF.model_copy(update={"rrl": RrlParams(enabled=True)})
    weighted = amlp_loss(model, images, lesion, masked, visible, patch=8, settings=settings, progress=0.0)
    assert torch.equal(plain.total, weighted.total)
    later = amlp_loss(model, images, lesion, masked, visible, patch=8, settings=settings, progress=1.0)
    assert later.total > plain.total, "weights that rise with the error raise the loss"


def test_ccl_adds_its_weighted_share(batch):
    images, lesion, masked, visible = batch
    settings = OFF.model_copy(update={"ccl": CclParams(enabled=True, weight=0.25)})
    model = build(settings)
    losses = amlp_loss(model, images, lesion, masked, visible, patch=8, settings=settings, progress=1.0)
    assert losses.ccl > 0
    assert torch.allclose(losses.total, losses.rrl + 0.25 * losses.ccl)
