from __future__ import annotations

from pathlib import Path

import pytest

from amlp.study.plan import Cell, Unit, make_plan
from amlp.study.store import Made, Store
from tests.support.small_study import load
from tests.support.tiny import write_shards

MADE = Made(
    code=dict.fromkeys(("pretrain", "finetune", "score"), "c"),
    data=dict.fromkeys(("pretrain", "finetune", "score"), "d"),
)


@pytest.fixture
def scored(tmp_path: Path) -> Unit:
    return make_plan(load(tmp_path)).cells[Cell("full", 1.0, 0)]


def finish(store: Store, unit: Unit, model: str = "") -> None:
    store.prepare(unit, MADE, threads=1)
    store.result(unit).mkdir()
    if model:
        name = {"pretrain": "encoder.pt", "finetune": "segmenter.pt"}[unit.kind]
        (store.result(unit) / name).write_text(model)


def test_a_unit_is_done_when_its_result_is_there(tmp_path: Path, scored: Unit) -> None:
    store = Store(tmp_path / "study")
    assert store.state(scored, MADE) == "absent"
    store.prepare(scored, MADE, threads=1)
    assert store.state(scored, MADE) == "absent"
    store.result(scored).mkdir()
    assert store.state(scored, MADE) == "done"
    # Made again: the old result is gone before the new record says how it was made.
    store.prepare(scored, MADE, threads=1)
    assert store.state(scored, MADE) == "absent"


@pytest.mark.parametrize("what", ["code", "data"])
def test_other_code_or_data_makes_it_stale(tmp_path: Path, scored: Unit, what: str) -> None:
    store = Store(tmp_path / "study")
    finish(store, scored)
    now = Made(**{"code": MADE.code, "data": MADE.data} | {what: {"score": "other"}})
    assert store.state(scored, now) == "stale"
    assert store.changes(scored, now) == [what]


def test_another_model_to_start_from_makes_it_stale(tmp_path: Path, scored: Unit) -> None:
    store, parent = Store(tmp_path / "study"), scored.needs
    assert parent
    finish(store, parent, "weights")
    finish(store, scored)
    assert store.state(scored, MADE) == "done"
    (store.result(parent) / "segmenter.pt").write_text("other weights")
    assert store.changes(scored, MADE) == ["input"]
    (store.result(parent) / "segmenter.pt").unlink()
    assert store.state(scored, MADE) == "done"


def test_the_test_split_counts_for_scores_alone(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    before = Made.now(shards)
    assert before == Made.now(shards)
    file = shards / "test-images-00000.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    after = Made.now(shards)
    assert before.code == after.code
    assert [kind for kind in before.data if before.data[kind] != after.data[kind]] == ["score"]
