"""A page of pictures that stands alone: they lie within it, and it loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }}
figure {{ margin: 0 0 2rem; }}
img {{ max-width: 100%; }}
</style>
<h1>{title}</h1>
{figures}
</html>
"""


def write_gallery(page: Path, *, title: str, pictures: Mapping[str, Path]) -> None:
    """Write an HTML page with PNG pictures under their captions; those that do not exist are left out.

    Args:
        page: the file.
        title: plain text, as the captions are.
        pictures: caption -> file.
    """
    figures = []
    for caption, file in pictures.items():
        if file.is_file():
            data = base64.b64encode(file.read_bytes()).decode()
            image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            figures.append(f"<figure>\n<figcaption>{escape(caption)}</figcaption>\n{image}\n</figure>")
    none = "<p>No picture was drawn.</p>"
    page.write_text(_PAGE.format(title=escape(title), figures="\n".join(figures) or none), encoding="utf-8")
