"""The pipeline that tests of the images run compiles and gets all that it asks for, also where there is no Docker."""

from __future__ import annotations

from pathlib import Path

import yaml
from kfp import compiler

from tests.support.three_stages import PARAMS, STAGES, three_stages, three_stages_arguments


def test_three_stages_compile_and_have_their_arguments(tmp_path: Path) -> None:
    compiler.Compiler().compile(three_stages, str(tmp_path / "three.yaml"))
    (compiled,) = yaml.safe_load_all((tmp_path / "three.yaml").read_text(encoding="utf-8"))
    assert set(compiled["root"]["dag"]["tasks"]) == set(STAGES)
    inputs = compiled["root"]["inputDefinitions"]["parameters"]
    given = three_stages_arguments(PARAMS, "f" * 40)
    assert set(given) == set(inputs) and all(isinstance(value, str) for value in given.values())
