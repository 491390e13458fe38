"""The README and the page on images of one's own: their blocks run on a small folder as somebody would have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from amlp.data.phantom import render_patient
from amlp.data.pictures import write_png
from amlp.params import PhantomParams
from devtools.servers import S3Server
from tests.support.documentation import Page, pages, run_page

PROJECT = Path(__file__).parents[3]
ALL = [page for page in pages(PROJECT) if page.runs]
PAGES = [page for page in ALL if page.start == "a folder with my-data"]
WITH_S3 = [page for page in ALL if page.start == "a folder with images and S3"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds my-data: 16 patients with a lesion, 4 without, and images without masks."""
    params = PhantomParams(images_per_patient=2, height=64, width=80)
    for patient in range(24):
        for case in render_patient(params=params, seed=7, patient=patient):
            where = tmp_path / "start/my-data" / ("unlabelled" if patient >= 20 else case.label)
            where.mkdir(parents=True, exist_ok=True)
            write_png(where / f"{case.case_id}.png", case.image)
            if patient < 20:
                write_png(where / f"{case.case_id}_mask.png", case.mask)
    return tmp_path / "start"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_run(page: Page, folder: Path, tmp_path: Path) -> None:
    run_page(page, folder, tmp_path / "state")


@pytest.mark.parametrize("page", WITH_S3, ids=lambda page: page.name)
def test_the_blocks_run_beside_s3(page: Page, s3_server: S3Server, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "images/lesion").mkdir(parents=True)
    for case in render_patient(params=PhantomParams(height=64, width=80), seed=7, patient=0):
        write_png(folder / f"images/lesion/{case.case_id}.png", case.image)
    s3_server.client().create_bucket(Bucket="amlp-data")
    names = {f"GIT_{role}_{what}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    run_page(page, folder, tmp_path / "state", **s3_server.environment, **names, S3_ENDPOINT=s3_server.endpoint)
    assert s3_server.client().list_objects_v2(Bucket="amlp-data")["KeyCount"] > 4
