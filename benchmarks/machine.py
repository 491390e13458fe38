"""Where a figure was measured, and with which versions: no figure is kept without them."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from amlp.files import write_json

RESULTS = Path(__file__).parent / "results"


def cpu_model() -> str:
    """Name of the processor, as far as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(packages: Sequence[str] = ("torch", "timm", "numpy")) -> dict[str, Any]:
    """Versions of Python and of `packages`, and the machine."""
    return {
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "machine": {"cpu": cpu_model(), "cores": usable_cores(), "system": f"{platform.system()} {platform.machine()}"},
    }


def report(
    name: str, figures: Mapping[str, Any], headline: str, *, packages: Sequence[str] = ("torch", "timm", "numpy")
) -> Path:
    """Write `results/<name>.json` and print the headline last.

    Args:
        name: of the benchmark.
        figures: what was measured; JSON values, no NaN.
        headline: one line with the figure that the README quotes.
        packages: installed packages whose versions matter.

    Returns:
        The file.
    """
    path = RESULTS / f"{name}.json"
    write_json(path, {"headline": headline, "figures": dict(figures), **describe(packages)})
    print(f"wrote {path.relative_to(RESULTS.parents[1])}")
    print(headline)
    return path
