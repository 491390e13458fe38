from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amlp.files import read_json
from benchmarks.bench_gate import BUSI, GAIN, HARM, NO_GAIN, Scenario, draw, even, table


@pytest.mark.parametrize("shape", ["normal", "heavy", "failures"])
def test_draws_have_the_gain_and_spread_that_the_scenario_names(shape: str) -> None:
    scenario = Scenario("any", gain=even(0.03), spread=0.08, shape=shape)  # type: ignore[arg-type]
    dsc = draw(scenario, 2000, 0).differences["dsc"]
    assert dsc.shape == (120, 2000)
    assert dsc.mean() == pytest.approx(0.03, abs=0.001) and dsc.std() == pytest.approx(0.08, abs=0.002)


def test_a_gain_over_all_images_is_made_by_the_classes_with_lesions() -> None:
    drawn = draw(Scenario("any", BUSI, even(0.03, BUSI), worse=0.1, better=0.1, images=3), 2000, 0)
    assert drawn.differences["dsc"].mean() == pytest.approx(0.03, abs=0.002)
    normal = drawn.label == "normal"
    assert (drawn.lesion == ~normal).all() and set(np.unique(drawn.differences["dsc"][normal])) == {-1.0, 0.0, 1.0}
    # Images of a group are alike.
    for group in range(120):
        assert len(np.unique(drawn.differences["dsc"][drawn.group == group], axis=0)) == 1


def test_the_document_holds_the_table_that_was_measured(project: Path) -> None:
    figures = read_json(project / "benchmarks/results/gate.json")["figures"]
    titles = [scenario.title for scenario in (*NO_GAIN, *GAIN, *HARM)]
    assert sorted(figures) == sorted(titles)
    assert table({title: figures[title] for title in titles}) in (project / "docs/explanation/gate.md").read_text(
        encoding="utf-8"
    )
