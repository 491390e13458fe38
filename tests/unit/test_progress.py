from __future__ import annotations

import pytest

from amlp.progress import progress


def test_progress_shows_label_count_rate_and_what_an_earlier_run_did(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(10, "pretrain", "epochs", done=4) as bar:
        bar.update(6)
        bar.set_postfix(loss="0.5")
    shown = capsys.readouterr().err
    assert "pretrain: 40%" in shown.replace("  ", " ")
    assert "10/10" in shown
    assert "epochs/s" in shown
    assert "loss=0.5" in shown


def test_a_log_gets_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(100_000, "ingest", "images") as bar:
        for _ in range(100_000):
            bar.update()
    shown = capsys.readouterr().err
    # Whole ones, from the first: a container's log shows nothing of a line before its end.
    assert shown.startswith("ingest:   0%") and 2 <= shown.count("\n") <= 4 and "\r" not in shown
    assert "100000/100000" in shown.splitlines()[-1]


def test_a_disabled_bar_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(3, "pretrain", "epochs", disable=True) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
