"""How soon `amlp --help` is there: the best of ten starts, for other work on the machine slows single ones down.

    python -m benchmarks.bench_start

The aim is half a second. tests/unit/test_cli.py holds what it takes: that no large library is imported.
"""

from __future__ import annotations

import subprocess
import sys
import time


def seconds() -> float:
    """Time of one start."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "amlp", "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    print(f"{min(seconds() for _ in range(10)):.2f} s")
