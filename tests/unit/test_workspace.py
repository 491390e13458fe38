from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from amlp.cli import main
from amlp.errors import ListedError, UserError
from amlp.params import Params, load_params
from amlp.workspace import make_workspace


@pytest.fixture
def copy(tmp_path: Path, project: Path) -> Path:
    """A project with the real pipeline and a recipe."""
    (tmp_path / "dvc.yaml").write_bytes((project / "dvc.yaml").read_bytes())
    (tmp_path / "images").mkdir()
    (tmp_path / "amlp/data").mkdir(parents=True)
    (tmp_path / "amlp/data/phantom.py").touch()
    (tmp_path / "recipe.yaml").write_text("ingest: {source: busi}\nfinetune: {epochs: 3}\n")
    return tmp_path


def test_a_workspace_holds_every_value_and_the_same_pipeline(copy: Path) -> None:
    folder = copy / "workspaces/mine"
    make_workspace(folder, recipe=copy / "recipe.yaml", data=copy / "images", project=copy)

    values = yaml.safe_load((folder / "params.yaml").read_text())
    expected = Params().model_dump(by_alias=True)
    expected["ingest"] |= {"source": "busi", "path": "../../images"}
    expected["finetune"]["epochs"] = 3
    assert values == expected
    assert load_params(folder / "params.yaml").finetune.epochs == 3

    ours, theirs = ((root / "dvc.yaml").read_text().splitlines() for root in (copy, folder))
    changed = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
    assert [pair[1].split(" #")[0].strip() for pair in changed] == ["- code: ../../amlp"]


def test_data_outside_the_project_keep_their_full_path(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("images")
    params = make_workspace(copy / "mine", recipe=copy / "recipe.yaml", data=elsewhere, project=copy)
    assert params.ingest.path == str(elsewhere)


def test_without_data_the_recipes_path_is_taken_from_the_project(copy: Path) -> None:
    params = make_workspace(copy / "workspaces/mine", recipe=copy / "recipe.yaml", data=None, project=copy)
    assert params.ingest.path == "../../amlp/data/phantom.py"


def test_a_changed_recipe_is_taken_over_and_an_edited_workspace_is_not_overwritten(copy: Path) -> None:
    folder, recipe = copy / "mine", copy / "recipe.yaml"
    make_workspace(folder, recipe=recipe, data=None, project=copy)
    recipe.write_text("finetune: {epochs: 5}\n")
    assert make_workspace(folder, recipe=recipe, data=None, project=copy).finetune.epochs == 5

    settings = folder / "params.yaml"
    settings.write_text(settings.read_text().replace("epochs: 5", "epochs: 6"))
    with pytest.raises(UserError, match="edited"):
        make_workspace(folder, recipe=recipe, data=None, project=copy)
    assert load_params(settings).finetune.epochs == 6


@pytest.mark.parametrize("folder", [".", "..", "../beside"])
def test_a_workspace_must_lie_inside_the_project(copy: Path, folder: str) -> None:
    with pytest.raises(UserError, match="below"):
        make_workspace(copy / folder, recipe=copy / "recipe.yaml", data=None, project=copy)


def test_wrong_input_leaves_nothing_behind(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "wrong.yaml").write_text("sed: 1\nfinetune: {epochs: 0}\n")
    with pytest.raises(ListedError, match=r"wrong\.yaml: 2 problem"):
        make_workspace(copy / "mine", recipe=copy / "wrong.yaml", data=None, project=copy)
    arguments = ["workspace", str(copy / "mine"), "--recipe", str(copy / "recipe.yaml"), "--project", str(copy)]
    assert main([*arguments, "--data", str(copy / "nothing")]) == 2
    assert "nothing: not found" in capsys.readouterr().err
    assert not (copy / "mine").exists()
