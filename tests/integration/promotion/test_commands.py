"""`amlp promote`, `history`, `show` and `rollback` as they are typed, on a registry of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from amlp.cli import main
from amlp.files import read_json
from amlp.promotion.ledger import read_history, who
from tests.integration.promotion.test_promotion import BAD, GOOD, Registry, registry

__all__ = ["registry"]


@pytest.fixture
def typed(registry: Registry) -> list[str]:
    """The options that name this registry."""
    file = registry.root / "params.yaml"
    file.write_text(yaml.safe_dump(registry.params.model_dump(by_alias=True)))
    return ["--params", str(file), "--root", str(registry.root)]


def test_from_a_candidate_to_a_champion_and_back(
    registry: Registry, typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    registry.register(GOOD)
    assert main(["history", *typed]) == 0
    assert "nothing was decided yet" in capsys.readouterr().out

    assert main(["promote", "--dry-run", *typed]) == 0
    said = capsys.readouterr().out
    assert "version 1 against the model from scratch" in said and "promote (better): DSC 1.000 against 0.000" in said
    assert registry.aliases == {"candidate": "1"} and not read_history(registry.client, "amlp-segmenter").entries

    assert main(["promote", "--reason", "the first", "--actor", "ada", *typed]) == 0
    assert registry.aliases == {"candidate": "1", "champion": "1"}
    [entry] = read_history(registry.client, "amlp-segmenter").entries
    assert (entry.actor, entry.reason) == (f"ada (as {who()})", "the first; gate: better")
    # All that it was decided by is there.
    import mlflow

    record = mlflow.artifacts.load_dict(entry.record)
    assert record["gate"]["effect"]["difference"] == 1.0 and record["gate"]["thresholds"]["min_groups"] == 3
    assert record["gate"]["test_hash"] and record["champion_before"] == ""

    registry.register(GOOD - 1)
    assert main(["promote", *typed]) == 10
    assert "keep (tie)" in capsys.readouterr().out
    registry.client.set_model_version_tag("amlp-segmenter", "1", "test_hash", "0" * 64)
    assert main(["promote", *typed]) == 11
    assert "refuse (other_data)" in capsys.readouterr().out
    assert main(["rollback", "--reason", "x", *typed]) == 2
    assert "no champion before version 1" in capsys.readouterr().err

    assert main(["history", *typed]) == 0
    said = capsys.readouterr().out
    decisions = [line.split()[2:5] for line in said.splitlines() if ", by " in line]
    assert decisions == [["promote", "version", "1,"], ["keep", "version", "2"], ["refuse", "version", "2"]]
    assert "champion: version 1; before it: none" in said


def test_a_version_is_followed_back_to_the_bytes(
    registry: Registry, typed: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import mlflow

    registry.register(BAD - 3)
    registry.register(GOOD)
    assert main(["promote", *typed]) == 0
    capsys.readouterr()
    assert main(["show", *typed]) == 0
    said = capsys.readouterr().out
    registration = read_json(registry.root / "registration.json")
    lineage = registration["lineage"]
    assert said.startswith("amlp-segmenter version 2 (candidate, champion)")
    assert "decision 1, promote" in said and "fine-tuned from amlp-encoder version 2" in said
    for fact in (lineage["data_md5"], lineage["git_commit"], lineage["params_hash"], registration["parent_run_id"],
                 registration["segmenter"]["model_sha256"], registration["encoder"]["model_sha256"]):  # fmt: skip
        assert fact in said
    assert f"git checkout {lineage['git_commit']}" in said and "dvc repro" in said
    assert main(["show", "1", *typed]) == 0
    assert "nothing was decided about it" in capsys.readouterr().out
    for wanted, message in (("nobody", "no version has the alias 'nobody'; there are candidate, champion"),
                            ("7", "no version 7 is registered")):  # fmt: skip
        assert main(["show", wanted, *typed]) == 2
        assert message in capsys.readouterr().err

    folder = Path(
        mlflow.artifacts.download_artifacts(f"runs:/{registration['parent_run_id']}/cards", dst_path=tmp_path)
    )
    card = read_json(folder / "segmenter/card.json")
    assert card["version"] == "2" and card["metrics"]["segmenter"]["dsc"]["mean"] is not None
    page = (folder / "segmenter/README.md").read_text(encoding="utf-8")
    assert "not a medical device" in page and "## Made again by" in page and lineage["data_md5"] in page
    assert "fine-tuning starts from its weights" in (folder / "encoder/README.md").read_text(encoding="utf-8")
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".md"):
            assert "patient_" not in file.read_text(encoding="utf-8")
