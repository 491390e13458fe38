import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amlp.method.ratio import masked_count, masking_ratio
from amlp.method.sampling import choose_patches, random_patches, select_patches
from amlp.params import AmrParams, MpsParams


@st.composite
def batches(draw):
    batch, patches = draw(st.integers(1, 5)), draw(st.integers(2, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    density = draw(st.floats(0, 1))
    lesion = torch.rand(batch, patches, generator=generator) < density
    return lesion, torch.rand(batch, patches, generator=generator), draw(st.integers(1, patches - 1))


@given(batches(), st.floats(0, 1))
@settings(max_examples=200)
def test_exactly_m_masked_per_row_and_lesions_up_to_their_share(batch, share):
    lesion, noise, count = batch
    masked, visible = select_patches(lesion, noise, count=count, share=share)
    patches = lesion.shape[1]
    assert masked.shape == (len(lesion), count)
    for row in range(len(lesion)):
        together = sorted(masked[row].tolist() + visible[row].tolist())
        assert together == list(range(patches))
        n = int(lesion[row].sum())
        wanted = min(count, math.ceil(torch.tensor(share) * n))
        background = patches - n
        hit = int(lesion[row, masked[row]].sum())
        assert hit == max(wanted, count - background)


@given(total=st.integers(2, 40), seed=st.integers(0, 1000))
def test_every_step_of_the_schedule_masks_exactly_m(total, seed):
    amr, mps = AmrParams(), MpsParams()
    generator = torch.Generator().manual_seed(seed)
    lesion = torch.rand(3, 30, generator=generator) < 0.2
    for step in range(total):
        ratio = masking_ratio(step, total, amr)
        masked, visible = choose_patches(lesion, torch.rand(3, 30, generator=generator), ratio=ratio, params=mps)
        m = masked_count(ratio, 30)
        assert masked.shape == (3, m)
        assert visible.shape == (3, 30 - m)


def test_without_lesions_the_choice_is_uniform():
    noise = torch.rand(4000, 8, generator=torch.Generator().manual_seed(0))
    masked, _ = select_patches(torch.zeros(4000, 8, dtype=torch.bool), noise, count=2, share=0.9)
    frequency = torch.bincount(masked.flatten(), minlength=8) / 4000
    assert torch.allclose(frequency, torch.full((8,), 0.25), atol=0.03)


def test_lesions_are_chosen_uniformly_among_themselves():
    lesion = torch.zeros(4000, 10, dtype=torch.bool)
    lesion[:, :4] = True
    noise = torch.rand(4000, 10, generator=torch.Generator().manual_seed(1))
    masked, _ = select_patches(lesion, noise, count=5, share=0.5)
    frequency = torch.bincount(masked.flatten(), minlength=10) / 4000
    assert torch.allclose(frequency, torch.full((10,), 0.5), atol=0.03)


def test_off_ignores_the_lesions():
    lesion = torch.ones(2, 16, dtype=torch.bool)
    lesion[:, 8:] = False
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    chosen = choose_patches(lesion, noise, ratio=0.5, params=MpsParams(enabled=False))
    plain = random_patches(noise, count=8)
    assert all(torch.equal(a, b) for a, b in zip(chosen, plain, strict=True))
