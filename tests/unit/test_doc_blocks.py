"""The blocks of the documentation are run, or say why not; here run those that need no trained model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.documentation import EMPTY, Page, pages, run_page

PROJECT = Path(__file__).parents[2]
ALL = pages(PROJECT)
# What tests/integration/docs runs.
SLOW = {"the tutorial's project", "a folder with my-data", "a folder with images and S3"}
TUTORIAL = "docs/tutorial/first-segmenter.md"
QUICK = [page for page in ALL if page.runs and page.start == EMPTY and page.name != TUTORIAL]


def test_at_least_four_in_five_blocks_run() -> None:
    blocks = [block for page in ALL for block in page.blocks]
    run = [block for block in blocks if block.reason is None]
    assert len(run) >= 0.8 * len(blocks), f"{len(run)} of {len(blocks)} blocks run"


def test_a_test_runs_each_page() -> None:
    assert {page.start for page in ALL} <= {EMPTY, *SLOW}


def test_a_block_that_is_not_run_says_why() -> None:
    for page in ALL:
        for block in page.blocks:
            assert block.reason is None or len(block.reason.split()) >= 3, f"{page.name}:{block.line}"


@pytest.mark.parametrize("page", QUICK, ids=lambda page: page.name)
def test_the_blocks_run(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    run_page(page, folder, tmp_path / "state")
