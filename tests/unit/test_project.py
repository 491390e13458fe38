"""`amlp init`, for a clone and for an installed amlp; tests/integration/test_wheel.py runs the pipeline in one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import amlp
from amlp.cli import main
from amlp.errors import ListedError, UserError
from amlp.params import Params, load_params
from amlp.project import init_project, recipe_names

# A version that no release has.
OTHER = "0.0.0"


def copy_pipeline(project: Path, to: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(project / name, to / name)
    shutil.copytree(project / "recipes", to / "recipes")


@pytest.fixture
def clone(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone that `amlp` runs from, under DVC."""
    folder = tmp_path / "clone"
    (folder / "amlp/data").mkdir(parents=True)
    (folder / "amlp/data/phantom.py").touch()
    (folder / ".dvc").mkdir()
    (folder / "images").mkdir()
    copy_pipeline(project, folder)
    monkeypatch.setattr(amlp, "__file__", str(folder / "amlp/__init__.py"))
    return folder


@pytest.fixture
def home(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository of somebody for whom amlp is installed, as its wheel has it."""
    template = tmp_path / "site-packages/amlp/template"
    template.mkdir(parents=True)
    copy_pipeline(project, template)
    monkeypatch.setattr(amlp, "__file__", str(template.parent / "__init__.py"))
    (tmp_path / "home/.dvc").mkdir(parents=True)
    return tmp_path / "home"


def stages_of(folder: Path) -> dict[str, dict]:
    return yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def comments(file: Path) -> list[str]:
    return [line.partition("#")[2].strip() for line in file.read_text(encoding="utf-8").splitlines() if "#" in line]


def test_a_project_in_a_clone_holds_every_value_and_the_same_pipeline(clone: Path) -> None:
    folder = clone / "workspaces/mine"
    (clone / "own.yaml").write_text("finetune: {epochs: 3, lr: 0.00001}\n")
    params = init_project(folder, recipe=str(clone / "own.yaml"), data=clone / "images")

    values = yaml.safe_load((folder / "params.yaml").read_text())
    expected = Params().model_dump(by_alias=True)
    expected["ingest"] |= {"source": "busi", "path": "../../images"}
    expected["finetune"] |= {"epochs": 3, "lr": 0.00001}
    assert values == expected == params.model_dump(by_alias=True)

    ours, theirs = (yaml.safe_load((root / "dvc.yaml").read_text()) for root in (clone, folder))
    assert theirs == ours | {"vars": [{"code": "../../amlp"}]}
    assert not (folder / ".dvc").exists() and not (folder / ".git").exists(), "the clone's own are used"
    assert not (folder / "requirements.txt").exists()


def test_a_project_of_an_installed_amlp_depends_on_its_version(home: Path, project: Path) -> None:
    init_project(home / "mine")
    assert re.findall(r"^[^#].*", (home / "mine/requirements.txt").read_text(), re.MULTILINE) == [
        f"amlp=={amlp.__version__}"
    ]
    text = (home / "mine/dvc.yaml").read_text()
    assert "${code}" not in text and "vars" not in text and str(home.parent) not in text
    for name, stage in yaml.safe_load((project / "dvc.yaml").read_text())["stages"].items():
        kept = [dep for dep in stage["deps"] if not dep.startswith("${code}")]
        assert stages_of(home / "mine")[name] == stage | {"deps": [*kept, "requirements.txt"]}


def test_the_settings_keep_their_comments(home: Path, project: Path) -> None:
    init_project(home / "mine", recipe="tiny")
    assert comments(home / "mine/params.yaml")[2:] == comments(project / "params.yaml")[1:]
    assert "  epochs: 2\n  batch: 8 # images a step over all workers\n" in (home / "mine/params.yaml").read_text()


@pytest.mark.parametrize("name", ["busi-cpu", "busi-gpu", "busi-study", "tiny"])
def test_a_recipe_of_amlp_draws_its_images_unless_it_gets_some(home: Path, project: Path, name: str) -> None:
    assert name in recipe_names()
    recipe = load_params(project / f"recipes/{name}.yaml").model_dump(by_alias=True)
    for data, ingest in ((None, ("phantom", "images")), (home, ("busi", ".."))):
        found = init_project(home / f"{name}-{bool(data)}", recipe=name, data=data).model_dump(by_alias=True)
        assert (found["ingest"]["source"], found["ingest"]["path"]) == ingest
        assert found | {"ingest": None} == recipe | {"ingest": None}
    assert (home / f"{name}-False/images/.gitignore").read_text().startswith("*\n"), "images stay out of git"


def test_the_phantom_of_a_clone_is_its_code(clone: Path) -> None:
    assert init_project(clone / "mine").ingest.path == "../amlp/data/phantom.py"


@pytest.mark.parametrize("name", ["plain", "two words # and ä", "it's: a folder", "line\nbreak"])
def test_data_elsewhere_keep_their_full_path_whatever_their_name(home: Path, name: str) -> None:
    elsewhere = home.parent / name
    elsewhere.mkdir()
    assert init_project(home / "mine", data=elsewhere).ingest.path == str(elsewhere)
    assert load_params(home / "mine/params.yaml").ingest.path == str(elsewhere)


def test_an_unedited_project_is_written_anew_and_an_edited_one_is_not(home: Path) -> None:
    folder, settings = home / "mine", home / "mine/params.yaml"
    init_project(folder)
    (folder / "report.html").write_text("results")
    assert init_project(folder, recipe="tiny").finetune.epochs == 2
    assert load_params(settings).finetune.epochs == 2 and (folder / "report.html").read_text() == "results"

    for file in (settings, folder / "dvc.yaml", folder / "requirements.txt"):
        whole = file.read_text()
        file.write_text(f"{whole}# mine\n")
        with pytest.raises(UserError, match=rf"{file.name}: was edited since"):
            init_project(folder)
        assert file.read_text() == f"{whole}# mine\n"
        file.unlink()
        init_project(folder, recipe="tiny")
        assert file.read_text() == whole


@pytest.mark.parametrize("content", ["notes.txt", "params.yaml"])
def test_a_folder_of_others_is_not_touched(home: Path, content: str) -> None:
    (home / "mine").mkdir()
    (home / "mine" / content).write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"mine: exists, and `amlp init` did not make it"):
        init_project(home / "mine")
    assert [file.read_text() for file in (home / "mine").iterdir()] == ["seed: 1\n"]


def test_an_empty_folder_is_filled_and_stays_the_same_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mine").mkdir()
    monkeypatch.chdir(home / "mine")
    assert main(["init", "."]) == 0
    assert Path("params.yaml").is_file() and {file.name for file in home.iterdir()} == {".dvc", "mine"}


def test_wrong_input_leaves_nothing_behind(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "wrong.yaml").write_text("sed: 1\nfinetune: {epochs: 0}\n")
    with pytest.raises(ListedError, match=r"wrong\.yaml: 2 problem"):
        init_project(home / "mine", recipe=str(home / "wrong.yaml"))
    (home / "own.yaml").write_text("ingest: {source: busi}\n")
    for arguments, message in (
        (["--recipe", "tyni"], "--recipe tyni: no recipe of amlp, and no such file. Expected busi-cpu, busi-gpu"),
        (["--recipe", str(home / "own.yaml")], "own.yaml: ingest.source is busi. Name the images' folder with --data"),
        (["--data", str(home / "nothing")], "nothing: not found. --data"),
        (["--data", str(home / "own.yaml")], "own.yaml: no folder. --data"),
    ):
        assert main(["init", str(home / "mine"), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert {file.name for file in home.iterdir()} == {".dvc", "wrong.yaml", "own.yaml"}


def test_without_git_nothing_is_left(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(home / ".dvc")
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(UserError, match="git: not found"):
        init_project(home / "mine")
    assert not list(home.iterdir())


def test_a_project_brings_git_and_dvc_unless_they_are_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(home.parent))
    shutil.rmtree(home / ".dvc")

    def git(*words: str, folder: Path) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout

    init_project(home / "new")
    assert set(git("diff", "--cached", "--name-only", folder=home / "new").split()) == {
        ".dvc/.gitignore", ".dvc/config", ".dvcignore",
    }  # fmt: skip
    assert git("diff", "--name-only", folder=home / "new") == "", "what is staged is what is there"
    assert "analytics = false" in (home / "new/.dvc/config").read_text()

    (home / "git").mkdir()
    git("init", "--quiet", folder=home / "git")
    init_project(home / "git/inside")
    assert (home / "git/inside/.dvc/config").is_file() and not (home / "git/inside/.git").exists()
    (home / "git/inside/mlflow.db").touch()
    assert "mlflow.db" not in git("status", "--porcelain", "--untracked-files=all", folder=home / "git")


@pytest.mark.parametrize("line", [f"amlp=={OTHER}", f"amlp[onnx] == {OTHER}  # for serving"])
def test_a_stage_refuses_a_project_of_another_version(
    home: Path, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    init_project(home / "mine")
    monkeypatch.chdir(home / "mine")
    Path("requirements.txt").write_text(f"# pinned\nnumpy\n{line}\n")
    assert main(["ingest"]) == 2
    assert f"pins amlp=={OTHER}, and amlp {amlp.__version__} runs. Install" in capsys.readouterr().err
    assert not Path("data").exists()


def test_the_command_of_earlier_versions_names_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["workspace", "workspaces/mine", "--recipe", "recipes/busi-cpu.yaml"]) == 2
    assert "run `amlp init PROJECT [--data FOLDER] [--recipe NAME]`" in capsys.readouterr().err


def test_the_next_command_can_be_pasted_whatever_the_folder_is_called(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["init", str(home / "mein Prüf-Projekt")]) == 0
    assert f"cd '{home / 'mein Prüf-Projekt'}' && dvc repro" in capsys.readouterr().out

    monkeypatch.chdir(home)
    assert main(["init", "--", "-mine"]) == 0
    assert "cd ./-mine && dvc repro" in capsys.readouterr().out


def test_a_place_where_nothing_can_be_written_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A file where a folder would have to be: nobody can write there, root included.
    (home / "file").touch()
    assert main(["init", str(home / "file/mine")]) == 2
    assert f"{home}/file/mine: can't be made (" in capsys.readouterr().err
