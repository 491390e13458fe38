"""The blocks of the documentation are run, by tests/integration/docs, or say why not."""

from __future__ import annotations

from pathlib import Path

from tests.support.documentation import EMPTY, pages

PROJECT = Path(__file__).parents[2]
ALL = pages(PROJECT)
# Where blocks start, besides an empty folder.
SLOW = {"the tutorial's project", "a folder with my-data", "a folder with images and S3"}


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
