"""The blocks of the pages that need no trained model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.documentation import EMPTY, Page, pages, run_page

PROJECT = Path(__file__).parents[3]
TUTORIAL = "docs/tutorial/first-segmenter.md"
QUICK = [page for page in pages(PROJECT) if page.runs and page.start == EMPTY and page.name != TUTORIAL]


@pytest.mark.parametrize("page", QUICK, ids=lambda page: page.name)
def test_the_blocks_run(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    run_page(page, folder, tmp_path / "state")
