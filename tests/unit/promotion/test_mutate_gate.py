"""The list of mutations fits the gate as it is; `make test-gate-mutations` runs the tests against each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mutate_gate import MUTATIONS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_applies_once_and_leaves_code(project: Path, mutation: Mutation) -> None:
    text = (project / mutation.file).read_text(encoding="utf-8")
    compile(mutation.apply(text), mutation.file, "exec")


def test_a_mutation_of_what_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"gone: a\.py holds 0 times"):
        Mutation("gone", "a.py", "x = 1", "x = 2").apply("x = 3")


def test_names_are_unique() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
