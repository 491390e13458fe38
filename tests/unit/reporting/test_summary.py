from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from amlp.cli import main
from tests.support.records import registration_of, summary_of


def test_summary_without_a_run_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "--root", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    for named in ("evaluation/summary.json", "registration.json", "report.html", "dvc repro"):
        assert named in shown


def test_summary_shows_scores_versions_and_where_to_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def scores(mean: float | None) -> dict[str, dict[str, float | None]]:
        low, high = (None, None) if mean is None else (mean - 0.02, mean + 0.03)
        return {"dsc": {"mean": mean, "low": low, "high": high}, "dsc_lesion": {"mean": mean, "low": low, "high": high}}

    evaluation = summary_of(
        {"cases": 64, "lesion_cases": 51, "groups": 16, "hash": "f" * 64},
        confidence=0.9,
        models={"scratch": scores(0.7), "segmenter": scores(0.84), "threshold": scores(None)},
    )
    model = {"name": "amlp-segmenter", "version": "4", "aliases": ["candidate", "champion"], "model_sha256": "c" * 64}
    registration = registration_of(segmenter=model)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/summary.json").write_text(json.dumps(evaluation))
    (tmp_path / "registration.json").write_text(json.dumps(registration))
    (tmp_path / "report.html").write_text("<html></html>")

    assert main(["summary", "--root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for named in (
        "64 images, 51 with a lesion, in 16 groups",
        "90% interval",
        "0.820 to 0.870",
        "amlp-encoder version 3",
        "amlp-segmenter version 4 (candidate, champion)",
        str(tmp_path / "report.html"),
        "mlflow ui --backend-store-uri sqlite:///mlflow.db",
    ):
        assert named in shown
    table = [line.split()[:2] for line in shown.splitlines()[2:5]]
    assert table == [["segmenter", "0.840"], ["scratch", "0.700"], ["threshold", "-"]]
    assert "did worse" not in shown

    evaluation["models"]["threshold"] = scores(0.9)
    (tmp_path / "evaluation/summary.json").write_text(json.dumps(evaluation))
    assert main(["summary", "--root", str(tmp_path)]) == 0
    assert "The segmenter did worse than threshold" in capsys.readouterr().out

    # Whoever reads the summary may stop in the middle of it, as `head` does.
    command = [sys.executable, "-m", "amlp", "summary", "--root", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
