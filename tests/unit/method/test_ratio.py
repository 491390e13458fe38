from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlp.method.ratio import masked_count, masking_ratio
from amlp.params import AmrParams

RATIO = st.floats(0.01, 0.99)


@given(start=RATIO, end=RATIO, power=st.floats(0.1, 5), total=st.integers(2, 500))
def test_ratio_is_monotone_from_start_to_end(start, end, power, total):
    params = AmrParams(start=start, end=end, power=power)
    ratios = [masking_ratio(step, total, params) for step in range(total)]
    assert ratios[0] == pytest.approx(start)
    assert ratios[-1] == pytest.approx(end)
    sign = 1 if end >= start else -1
    assert all(sign * (after - before) >= -1e-12 for before, after in pairwise(ratios))


@given(step=st.integers(0, 99))
def test_falling_mirrors_rising_when_linear(step):
    rising, falling = AmrParams(), AmrParams(schedule="falling")
    assert masking_ratio(step, 100, falling) == pytest.approx(masking_ratio(99 - step, 100, rising))


def test_off_is_the_final_ratio_throughout():
    params = AmrParams(enabled=False, end=0.75)
    assert {masking_ratio(step, 10, params) for step in range(10)} == {0.75}


def test_a_training_of_one_step_uses_the_end():
    assert masking_ratio(0, 1, AmrParams(start=0.2, end=0.6)) == 0.6


@given(ratio=st.floats(0, 1), patches=st.integers(2, 1000))
def test_count_leaves_something_to_see_and_something_to_paint(ratio, patches):
    assert 1 <= masked_count(ratio, patches) <= patches - 1
