"""The pages of the documentation that are made from the code."""

from __future__ import annotations

import os

import pytest

from amlp.cli import build_parser
from devtools.reference_pages import commands_page, parameters, parameters_page


def test_each_parameter_has_a_line_with_type_default_and_meaning() -> None:
    page = parameters_page()
    names = [name for name, _ in parameters()]
    assert len(names) > 90 and all(page.count(f"| `{name}` |") == 1 for name in names)
    assert "| `preprocess.test_fraction` | number, above 0, below 1 | `0.2` | of the groups |" in page
    assert "| `scores.polarity` | `dark`, `bright`, `unknown` | `dark` |" in page


def test_each_command_has_its_help_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    page = commands_page()
    for name in ("init", "pretrain", "predict", "promote", "study"):
        assert f"### amlp {name}\n\n```text\nusage: amlp {name}" in page
    assert build_parser().format_help().rstrip() in page and "### amlp-pipelines submit" in page
    assert os.environ["COLUMNS"] == "100"
