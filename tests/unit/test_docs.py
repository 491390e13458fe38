"""What the documents point to exists."""

import re
import subprocess
from pathlib import Path

import pytest

DOCUMENTS = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/method.md", "docs/results.md",
    "docs/kubeflow.md", "docs/first-cluster.md", "k8s/README.md",
    "docs/gate.md", "docs/registry.md", "docs/serving.md",
]  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(project: Path, name: str):
    text = (project / name).read_text(encoding="utf-8")
    assert "@@" not in text
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    missing = [target for target in targets if not ((project / name).parent / target.partition("#")[0]).exists()]
    assert not missing


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_files_of_the_repository_exist(project: Path, name: str):
    text = (project / name).read_text(encoding="utf-8")
    named = re.findall(r"`((?:amlp|tests|docs|recipes|benchmarks|components|pipelines|k8s)/[\w./-]+\.\w+)`", text)
    # Made by the reader.
    named = [path for path in named if path != "recipes/mine.yaml" and "/secrets/" not in path]
    assert not [path for path in named if not (project / path).exists()]


def test_the_readmes_make_targets_exist(project: Path):
    makefile = (project / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z][a-z-]+)", (project / "README.md").read_text(encoding="utf-8"))):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("name", ["docs/kubeflow.md", "docs/first-cluster.md", "k8s/README.md", "README.md"])
def test_following_the_documents_leaves_the_clone_clean(project: Path, name: str):
    """Else runs are marked as dirty, and tasks refuse to run on the images of the commit."""
    for file in re.findall(r"^ *cat > (\S+)", (project / name).read_text(encoding="utf-8"), flags=re.MULTILINE):
        ignored = subprocess.run(["git", "check-ignore", "--quiet", file], cwd=project)
        assert ignored.returncode == 0, file
