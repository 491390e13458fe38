import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from amlp.training.stream import RowStream


@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 100))
def test_each_row_comes_once_in_each_pass(n, batch, seed):
    stream = RowStream(np.arange(n) * 10, batch=batch, seed=seed)
    rows = np.concatenate([stream(step) for step in range(-(-3 * n // batch))])[: 3 * n]
    for number in range(3):
        assert sorted(rows[number * n : (number + 1) * n]) == [10 * i for i in range(n)]


def test_a_step_does_not_depend_on_the_steps_before():
    one, other = (RowStream(np.arange(17), batch=4, seed=3) for _ in range(2))
    in_order = [one(step) for step in range(20)]
    backwards = [other(step) for step in reversed(range(20))]
    assert all(np.array_equal(a, b) for a, b in zip(in_order, reversed(backwards), strict=True))


def test_seeds_shuffle_differently():
    assert not np.array_equal(
        RowStream(np.arange(50), batch=50, seed=0)(0), RowStream(np.arange(50), batch=50, seed=1)(0)
    )
