"""Pictures of a run, embedded so that the page needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

# Bytes a picture may take before it becomes a JPEG: with these the page stays below 5 MB.
_PICTURE_BYTES = 450_000
_PICTURE_WIDTHS = (1800, 1200, 800)


def embedded(folder: Path, kinds: Mapping[str, tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Embed the pictures that exist, in the order of `kinds`: file stem -> title, caption, alternative text."""
    items = []
    for name, (title, caption, alt) in kinds.items():
        file = folder / f"{name}.png"
        if file.is_file():
            picture = _embed(file, alt)
            items.append({"title": title, "caption": caption, "picture": picture, "wide": picture["width"] > 800})
    return items


def _embed(file: Path, alt: str) -> dict[str, Any]:
    """Turn a picture into a data URI: as it is when small, else as a JPEG, shrunk until it fits."""
    content, kind = file.read_bytes(), "png"
    with Image.open(file) as image:
        size = image.size
        for width in _PICTURE_WIDTHS:
            if len(content) <= _PICTURE_BYTES:
                break
            small = image.convert("RGB")
            small.thumbnail((width, size[1]), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            small.save(buffer, format="JPEG", quality=85, optimize=True)
            content, kind = buffer.getvalue(), "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"uri": uri, "width": size[0], "height": size[1], "alt": alt}
