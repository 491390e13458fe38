"""Progress of long work, with rate and time left: one moving line on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys

from tqdm import tqdm


class _Lines:
    """Standard error as a log: one line per state of the bar.

    What follows a carriage return is shown nowhere before its line ends: a container's log would be silent until the
    end of the work.
    """

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(total: int, label: str, unit: str, *, done: int = 0, disable: bool = False) -> tqdm:
    """Open a progress bar over `total` units of work, of which `done` were finished by an earlier run.

    Use it as a context manager, `update(n)` as work gets done and `set_postfix` for figures.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=label,
        unit=f" {unit}",
        initial=done,
        disable=disable,
        file=None if terminal else _Lines(),
        # A log is read afterwards: a line each ten seconds says as much as a hundred.
        mininterval=0.2 if terminal else 10.0,
        dynamic_ncols=terminal,
        # Count every update, or a training that slows down falls silent.
        miniters=1,
        smoothing=0.1,
    )
