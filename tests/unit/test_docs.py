"""What the documents point to exists."""

import re
from pathlib import Path

import pytest

DOCUMENTS = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/method.md", "docs/results.md",
    "docs/kubeflow.md", "k8s/README.md",
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
    assert not [path for path in named if path != "recipes/mine.yaml" and not (project / path).exists()]


def test_the_readmes_make_targets_exist(project: Path):
    makefile = (project / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z][a-z-]+)", (project / "README.md").read_text(encoding="utf-8"))):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
