import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlp.data.labels import labelled_subset, unused_labels
from amlp.errors import UserError


def index(groups=20):
    return pd.DataFrame(
        {
            "group": [g for g in range(groups) for _ in range(3)],
            "label": [("a", "b")[g % 2] for g in range(groups) for _ in range(3)],
            "labelled": [i != 1 for _ in range(groups) for i in range(3)],
        }
    )


@given(fraction=st.floats(0.01, 1), seed=st.integers(0, 50))
def test_a_label_fraction_takes_whole_groups_of_every_label(fraction, seed):
    table = index()
    chosen = table.loc[labelled_subset(table, fraction, seed)]
    assert chosen["labelled"].all()
    for label in ("a", "b"):
        groups = chosen.loc[chosen["label"] == label, "group"]
        assert groups.nunique() == max(1, round(fraction * 10))
        assert (groups.value_counts() == 2).all()


def test_a_larger_fraction_contains_the_smaller():
    small, large = (set(labelled_subset(index(), fraction, 7)) for fraction in (0.3, 0.6))
    assert small < large


def test_no_labels_is_an_error():
    with pytest.raises(UserError, match="no image with a mask"):
        labelled_subset(index().assign(labelled=False), 1.0, 0)


@given(fraction=st.floats(0.01, 0.94), seed=st.integers(0, 50))
def test_unused_are_all_labelled_images_of_the_other_groups(fraction, seed):
    table = index()
    used, unused = labelled_subset(table, fraction, seed), unused_labels(table, fraction, seed)
    assert sorted([*used, *unused]) == np.flatnonzero(table["labelled"]).tolist()
    assert not set(table["group"][used]) & set(table["group"][unused])
    assert (np.diff(unused) > 0).all()


@pytest.mark.parametrize("fraction", [0.96, 1.0])
def test_nothing_left_out_is_an_error(fraction):
    with pytest.raises(UserError, match=r"finetune\.label_fraction .* leaves no labelled training image out"):
        unused_labels(index(), fraction, 0)
