"""The script of the tutorial, and the pages whose blocks run in the project that it makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amlp.data.pictures import read_image
from amlp.files import read_json
from tests.support.documentation import Page, pages, run_page

PROJECT = Path(__file__).parents[3]
PAGES = {page.name: page for page in pages(PROJECT)}
TUTORIAL = "docs/tutorial/first-segmenter.md"
OTHERS = [page for page in PAGES.values() if page.runs and page.start == "the tutorial's project"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project in which somebody followed the tutorial."""
    folder = tmp_path_factory.mktemp("tutorial")
    run_page(PAGES[TUTORIAL], folder, tmp_path_factory.mktemp("state") / "state")
    return folder / "first"


def test_it_ends_with_an_evaluated_model_and_a_predicted_mask(finished: Path) -> None:
    assert 0 <= read_json(finished / "evaluation/metrics.json")["segmenter_dsc"] <= 1
    [picture, _] = sorted((finished / "new").glob("*.png"))
    mask = read_image(finished / "mask.png")
    assert mask.shape == read_image(picture).shape and set(np.unique(mask)) <= {0, 255}
    assert len(list((finished / "found/masks").glob("*.png"))) == 2


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.name)
def test_the_blocks_run(page: Page, finished: Path, tmp_path: Path) -> None:
    run_page(page, finished, tmp_path / "state")
