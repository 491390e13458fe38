"""The gate in a real registry: who is compared with whom, and what becomes of the aliases.

No test image here has a lesion: a segmenter that calls nothing a lesion scores 1, and one that calls everything so 0.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from amlp.errors import UserError
from amlp.evaluation.evaluate import score_cases
from amlp.files import read_json, write_json
from amlp.layout import RunFolder
from amlp.models.checkpoint import save
from amlp.params import Params, parse_params
from amlp.promotion.decision import Decision
from amlp.promotion.ledger import Entry, read_history
from amlp.promotion.promote import Candidate, conclude, decided_before, find_reference, judge, rollback
from amlp.registry.register import register
from amlp.registry.registration import Registration
from amlp.registry.tracking import connect, import_mlflow
from tests.support.stage_outputs import write_stage_outputs

GOOD, BAD = -20.0, 20.0


def write_model(folder: Path, bias: float) -> None:
    """Make the model in `folder` say the same of every pixel; each bias is another file."""
    checkpoint = torch.load(folder / "segmenter.pt", weights_only=True)
    for name in ("head", "presence"):
        checkpoint["state"][f"{name}.bias"] = torch.full_like(checkpoint["state"][f"{name}.bias"], bias)
        checkpoint["state"][f"{name}.weight"] = torch.zeros_like(checkpoint["state"][f"{name}.weight"])
    save(folder / "segmenter.pt", checkpoint)


class Registry:
    """Stage outputs and a registry of their own."""

    def __init__(self, root: Path, tracking_uri: str) -> None:
        self.root = root
        self.params: Params = parse_params(
            {"register": {"tracking_uri": tracking_uri}, "gate": {"min_groups": 3}}, "test"
        )
        write_stage_outputs(root, epochs=3)
        index = pd.read_parquet(root / "data/shards/index.parquet")
        _, digest = score_cases({}, test=index[index["split"] == "test"], ingest=root / "data/ingest")
        summary = read_json(root / "evaluation/summary.json")
        summary["test"]["hash"] = digest
        write_json(root / "evaluation/summary.json", summary)
        self.scratch(BAD)

    def scratch(self, bias: float) -> None:
        write_model(self.root / "models/scratch", bias)

    def register(self, bias: float) -> Candidate:
        write_model(self.root / "models/segmenter", bias)
        register(params=self.params, root=self.root)
        return Candidate.registered(Registration.read(RunFolder(self.root).registration))

    def judge(self, candidate: Candidate) -> Decision:
        return judge(
            self.client, candidate, reference=find_reference(self.client, candidate), params=self.params.gate,
            ingest=self.root / "data/ingest", shards=self.root / "data/shards", scratch=self.root / "models/scratch",
        )  # fmt: skip

    def conclude(self, candidate: Candidate, record: dict[str, Any], reference: str = "") -> Entry | None:
        return conclude(self.client, candidate, record, reference=reference)

    def decided(self, candidate: Candidate, reference: str) -> dict[str, Any] | None:
        scratch = self.root / "models/scratch"
        return decided_before(self.client, candidate, reference=reference, params=self.params.gate, scratch=scratch)

    def challenge(self, bias: float) -> Decision:
        """Register a model, judge it, and promote it if it may be, as the pipeline does."""
        candidate = self.register(bias)
        reference = find_reference(self.client, candidate)
        decision = self.judge(candidate)
        self.conclude(candidate, decision.as_dict(), reference)
        return decision

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.params.register_.tracking_uri)

    @property
    def aliases(self) -> dict[str, str]:
        found = self.client.get_registered_model("amlp-segmenter").aliases
        return {alias: str(version) for alias, version in found.items()}


@pytest.fixture
def registry(tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.chdir(tmp_path)
    with connect(tracking_uri):
        yield Registry(tmp_path / "root", tracking_uri)


def test_a_first_champion_beats_the_model_from_scratch_and_the_next_one_the_champion(registry: Registry) -> None:
    registry.scratch(GOOD)
    first = registry.challenge(BAD)
    assert (first.outcome, first.role) == ("keep", "baseline")
    assert registry.aliases == {"candidate": "1"}

    registry.scratch(BAD - 1)
    second = registry.challenge(GOOD - 1)
    assert (second.outcome, second.role) == ("promote", "baseline")
    assert registry.aliases == {"candidate": "2", "champion": "2"}

    # Beats the baseline, and not the champion.
    third = registry.challenge(GOOD - 2)
    assert (third.outcome, third.reason, third.role) == ("keep", "tie", "champion")
    assert third.reference.name == "amlp-segmenter version 2"
    assert registry.aliases == {"candidate": "3", "champion": "2"}
    tags = registry.client.get_model_version("amlp-segmenter", "3").tags
    assert (tags["gate_outcome"], tags["gate_reference"]) == ("keep", "amlp-segmenter version 2")


def test_a_candidate_has_to_beat_the_champion_and_a_champion_whom_it_replaced(registry: Registry) -> None:
    """What the cache knows the gate's answer by."""
    first = registry.register(GOOD)
    assert find_reference(registry.client, first) == ""
    registry.conclude(first, registry.judge(first).as_dict())
    assert find_reference(registry.client, first) == ""

    second = registry.register(GOOD - 1)
    assert find_reference(registry.client, second) == "1"


def test_a_champion_that_somebody_made_by_hand_counts_until_there_are_decisions(registry: Registry) -> None:
    first = registry.register(BAD - 2)
    registry.client.set_registered_model_alias("amlp-segmenter", "champion", "1")
    # It stands against itself.
    assert find_reference(registry.client, first) == "1"
    assert (decision := registry.judge(first)).outcome == "refuse" and decision.reason == "same_model"

    candidate = registry.register(GOOD)
    record = registry.judge(candidate).as_dict()
    for _ in range(2):  # a task may be tried again
        registry.conclude(candidate, record, "1")
        assert registry.aliases == {"candidate": "2", "champion": "2", "previous_champion": "1"}
    assert [entry.before for entry in read_history(registry.client, "amlp-segmenter").entries] == ["1"]


def test_a_decision_about_another_champion_does_not_count(registry: Registry) -> None:
    first = registry.register(GOOD)
    record = registry.judge(first).as_dict()
    second = registry.register(GOOD - 1)
    registry.conclude(second, registry.judge(second).as_dict())
    with pytest.raises(UserError, match=r"judged against the model from scratch, and the champion is now version 2"):
        registry.conclude(first, record)
    assert registry.aliases["champion"] == "2"


def test_a_decision_about_another_candidate_promotes_nobody(registry: Registry) -> None:
    record = registry.judge(registry.register(GOOD)).as_dict()
    with pytest.raises(UserError, match="about amlp-segmenter version 1"):
        registry.conclude(registry.register(GOOD - 1), record)
    assert "champion" not in registry.aliases


@pytest.mark.parametrize("how", ["lost", "changed"])
def test_a_champion_that_cannot_be_trusted_is_a_refusal(registry: Registry, how: str) -> None:
    registry.challenge(GOOD)
    folder = next(path for path in registry.root.parent.rglob("segmenter.pt") if "mlartifacts" in path.parts)
    if how == "lost":
        folder.unlink()
    else:
        shutil.copy(registry.root / "models/scratch/segmenter.pt", folder)
    decision = registry.challenge(GOOD - 1)
    assert (decision.outcome, decision.reason) == ("refuse", "unreadable_model")
    assert registry.aliases["champion"] == "1"


def test_another_test_split_is_refused(registry: Registry) -> None:
    registry.challenge(GOOD)
    image = next((registry.root / "data/ingest/images").glob("case_00.png"))
    shutil.copy(image.with_name("case_03.png"), image)
    mask = registry.root / "data/ingest/masks/case_00.png"
    shutil.copy(mask.with_name("case_03.png"), mask)
    assert registry.judge(registry.register(GOOD - 1)).reason == "other_data"


def test_a_decision_is_known_after_a_rollback_and_only_for_what_it_was_about(registry: Registry) -> None:
    """A pipeline run whose other tasks come from the cache must not promote the version again."""
    registry.scratch(BAD - 1)
    registry.challenge(GOOD)
    second = registry.register(GOOD - 1)
    assert registry.decided(second, "1") is None
    decision = registry.judge(second).as_dict() | {"outcome": "promote"}
    registry.conclude(second, decision, "1")
    assert registry.decided(second, "1") == decision and registry.aliases["champion"] == "2"
    rollback(registry.client, second.name, reason="worse on the new scanner")
    assert registry.aliases["champion"] == "1" and find_reference(registry.client, second) == "1"
    assert registry.decided(second, "1") == decision
    # Another opponent, other thresholds.
    assert registry.decided(second, "") is None
    registry.params = parse_params({**registry.params.model_dump(by_alias=True), "gate": {"min_groups": 4}}, "test")
    assert registry.decided(second, "1") is None


def test_another_model_from_scratch_or_an_unreadable_one_is_judged_again(registry: Registry) -> None:
    first = registry.register(GOOD)
    decision = registry.judge(first).as_dict()
    registry.conclude(first, decision)
    assert registry.decided(first, "") == decision
    registry.scratch(GOOD - 1)
    assert registry.decided(first, "") is None
    registry.scratch(BAD)
    registry.conclude(first, decision | {"outcome": "refuse", "reason": "unreadable_model"})
    assert registry.decided(first, "") == decision


def test_a_record_that_was_changed_is_no_decision(registry: Registry) -> None:
    first = registry.register(GOOD)
    entry = registry.conclude(first, registry.judge(first).as_dict() | {"outcome": "keep"})
    assert entry
    run_id, _, file = entry.record.removeprefix("runs:/").partition("/")
    text = import_mlflow().artifacts.load_text(entry.record)
    registry.client.log_text(run_id, text.replace('"keep"', '"promote"'), file)
    with pytest.raises(UserError, match="the history says"):
        registry.decided(first, "")
