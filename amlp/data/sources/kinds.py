"""Where cases come from: one adapter for each kind of source.

A source is a function in `SOURCES`, `Request` -> `Listing`. It looks at names only; what is wrong with a file's content
comes out when its job runs. Nothing after ingest knows a source's layout. A new kind is a module here and a line below.
"""

from __future__ import annotations

from collections.abc import Mapping

from amlp.data.sources.base import Source
from amlp.data.sources.pairs import PRESETS, list_pairs
from amlp.data.sources.phantom import list_phantom

SOURCES: Mapping[str, Source] = {"phantom": list_phantom, "pairs": list_pairs, **dict.fromkeys(PRESETS, list_pairs)}
