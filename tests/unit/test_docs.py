"""What the documents point to exists."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
GENERATED = {"docs/reference/parameters.md", "docs/reference/commands.md"}
PAGES = sorted({file.relative_to(PROJECT).as_posix() for file in PROJECT.glob("docs/**/*.md")} - GENERATED)
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "k8s/README.md", *PAGES]
README_WORDS = 700


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(project: Path, name: str):
    text = (project / name).read_text(encoding="utf-8")
    assert "@@" not in text
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    paths = {Path(os.path.normpath((project / name).parent / target)) for target in targets if target}
    assert not [path for path in paths - {project / page for page in GENERATED} if not path.exists()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_files_of_the_repository_exist(project: Path, name: str):
    text = (project / name).read_text(encoding="utf-8")
    named = re.findall(r"`((?:amlp|tests|docs|recipes|benchmarks|components|pipelines|k8s)/[\w./-]+\.\w+)`", text)
    # Made by the reader.
    named = [path for path in named if "/secrets/" not in path]
    assert not [path for path in named if not (project / path).exists()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_make_targets_exist(project: Path, name: str):
    makefile = (project / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make ([a-z][a-z0-9-]+)", (project / name).read_text(encoding="utf-8"))):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_readme_is_short(project: Path):
    assert len((project / "README.md").read_text(encoding="utf-8").split()) <= README_WORDS


def test_the_site_s_table_of_contents_names_each_page_once(project: Path):
    def leaves(entry: object) -> list[str]:
        if isinstance(entry, dict):
            entry = [*entry.values()]
        return [leaf for one in entry for leaf in leaves(one)] if isinstance(entry, list) else [str(entry)]

    named = leaves(yaml.safe_load((project / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(f"docs/{name}" for name in named) == sorted([*PAGES, *GENERATED])


@pytest.mark.parametrize(
    "name", ["docs/how-to/kubeflow.md", "docs/tutorial/first-cluster.md", "docs/how-to/cluster.md"]
)
def test_following_the_documents_leaves_the_clone_clean(project: Path, name: str):
    """Else runs are marked as dirty, and tasks refuse to run on the images of the commit."""
    for file in re.findall(r"^ *cat > (\S+)", (project / name).read_text(encoding="utf-8"), flags=re.MULTILINE):
        ignored = subprocess.run(["git", "check-ignore", "--quiet", file], cwd=project)
        assert ignored.returncode == 0, file
