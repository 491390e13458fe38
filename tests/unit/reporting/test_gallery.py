from __future__ import annotations

from pathlib import Path

from PIL import Image

from amlp.reporting.gallery import write_gallery


def test_pictures_lie_within_the_page_and_text_is_only_text(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 200).save(tmp_path / "a.png")
    pictures = {"<b>First</b>": tmp_path / "a.png", "Second": tmp_path / "none.png"}
    write_gallery(tmp_path / "page.html", title='"Runs" & <script>', pictures=pictures)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 1 and "data:image/png;base64," in page
    assert "&lt;b&gt;First" in page and "<script>" not in page and "Second" not in page


def test_a_page_without_pictures_says_so(tmp_path: Path) -> None:
    write_gallery(tmp_path / "page.html", title="Runs", pictures={})
    assert "No picture" in (tmp_path / "page.html").read_text(encoding="utf-8")
