from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import amlp
from amlp.errors import ListedError, UserError
from amlp.files import read_json, write_json
from amlp.params import Params
from amlp.registry.register import REQUIREMENTS, register
from tests.support.stage_outputs import write_stage_outputs

IMPORTED_AS = {"PIL": "pillow"}


def test_all_missing_outputs_are_named_at_once(tmp_path: Path) -> None:
    write_stage_outputs(tmp_path)
    (tmp_path / "models/encoder/encoder.pt").unlink()
    (tmp_path / "evaluation/summary.json").unlink()
    with pytest.raises(ListedError) as caught:
        register(params=Params(), root=tmp_path)
    assert caught.value.problems == ["models/encoder/encoder.pt", "evaluation/summary.json"]
    assert not (tmp_path / "mlflow.db").exists()


def test_scores_that_are_not_of_the_test_split_are_refused(tmp_path: Path) -> None:
    write_stage_outputs(tmp_path)
    file = tmp_path / "evaluation/summary.json"
    summary = read_json(file)
    write_json(file, summary | {"test": summary["test"] | {"split": "unused"}})
    with pytest.raises(UserError, match=r"summary\.json: scores on the split 'unused'"):
        register(params=Params(), root=tmp_path)
    assert not (tmp_path / "mlflow.db").exists()


def test_models_require_all_that_their_code_imports() -> None:
    package = Path(amlp.__file__).parent
    waiting, seen, found = ["amlp.registry.segmenter_model", "amlp.registry.encoder_model"], set(), set()
    while waiting:
        module = waiting.pop()
        file = package.parent / f"{module.replace('.', '/')}.py"
        if module in seen or not file.is_file():
            continue
        seen.add(module)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            waiting += [name for name in names if name.startswith("amlp.")]
            found |= {name.split(".")[0] for name in names}
    # The U-Net's, which is never registered.
    foreign = found - sys.stdlib_module_names - {"amlp", "monai"}
    assert {IMPORTED_AS.get(name, name) for name in foreign} <= set(REQUIREMENTS)
    assert {"torch", "PIL"} <= foreign, "the search found the models' own imports"
