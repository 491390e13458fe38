"""The list of decisions: what it comes to, whatever order writers come in, and what is noticed when it was changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from amlp.promotion.ledger import CHANGES, Entry, History, ledger_name, read_history, replay, settle

NAME = "model"
# As the list is stored, so that one that was written by an earlier release can be read.
TAGS = ("action", "version", "before", "follows", "at", "actor", "reason", "summary", "record_sha256", "chain")


def line(number: int, seen: History, *, action: str = "promote", version: str = "1") -> Entry:
    """A line by a writer who knows the list as `seen`."""
    draft = Entry(
        number=number, action=action, version=version, before=seen.champion, follows=seen.last,  # type: ignore[arg-type]
        at="2026-01-01T00:00:00.000+00:00", actor="ada", reason="better", summary="+0.03", record="runs:/r/d.json",
        record_sha256="0" * 64, chain="",
    )  # fmt: skip
    return replace(draft, chain=draft.digest(seen.chain))


# How many lines a writer is behind, what it decides, and about which version.
WRITES = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["promote", "rollback", "keep", "refuse"]), st.integers(1, 9)),
    max_size=12,
)


def written(writes: list[tuple[int, str, int]]) -> list[Entry]:
    entries: list[Entry] = []
    for behind, action, version in writes:
        seen = replay(NAME, entries[: max(len(entries) - behind, 0)])
        entries.append(line(len(entries) + 1, seen, action=action, version=str(version)))
    return entries


@given(WRITES)
def test_changes_in_force_form_one_chain(writes: list[tuple[int, str, int]]) -> None:
    history = replay(NAME, written(writes))
    assert not history.troubles and len(history.entries) == len(writes)
    force = [entry for entry in history.entries if entry.action in CHANGES and not entry.void]
    champion, last = "", 0
    for entry in force:
        assert (entry.before, entry.follows) == (champion, last)
        champion, last = entry.version, entry.number
    assert (history.champion, history.last) == (champion, last)
    assert history.previous == (force[-1].before if force else "")
    # Who knew the whole list is never void; who decided nothing changes nothing.
    for (behind, action, _), entry in zip(writes, history.entries, strict=True):
        assert not (behind == 0 and entry.void)
        assert not (action in ("keep", "refuse") and entry.void)


@given(WRITES.filter(bool), st.data())
def test_a_line_that_was_changed_is_noticed(writes: list[tuple[int, str, int]], data: st.DataObject) -> None:
    entries = written(writes)
    place = data.draw(st.integers(0, len(entries) - 1))
    change = data.draw(st.sampled_from(["version", "before", "at", "actor", "reason", "summary", "record_sha256"]))
    changed = replace(entries[place], **{change: getattr(entries[place], change) + "x"})
    history = replay(NAME, [*entries[:place], changed, *entries[place + 1 :]])
    assert any(f"decision {place + 1} is not as it was written" in text for text in history.troubles)


@given(WRITES.filter(lambda writes: len(writes) > 1), st.data())
def test_a_line_that_was_lost_is_noticed(writes: list[tuple[int, str, int]], data: st.DataObject) -> None:
    entries = written(writes)
    place = data.draw(st.integers(0, len(entries) - 2))
    history = replay(NAME, [*entries[:place], *entries[place + 1 :]])
    assert history.troubles


def test_a_champion_made_by_hand_before_there_was_a_list_is_the_one_before() -> None:
    first = line(1, History(NAME, champion="3"), version="4")
    history = replay(NAME, [first])
    assert (history.champion, history.previous, history.troubles) == ("4", "3", ())


@pytest.mark.parametrize("champion", ["", "1", "2", "3"])
@pytest.mark.parametrize("previous", ["", "1", "2", "3"])
def test_aliases_follow_the_list_wherever_they_are(tracking_uri: str, champion: str, previous: str) -> None:
    client = MlflowClient(tracking_uri=tracking_uri)
    client.create_registered_model(NAME)
    for _ in range(3):
        client.create_model_version(NAME, "dbfs:/nowhere")
    for alias, version in (("champion", champion), ("previous_champion", previous), ("candidate", "3")):
        if version:
            client.set_registered_model_alias(NAME, alias, version)

    def aliases() -> dict[str, str]:
        found = client.get_registered_model(NAME).aliases
        return {alias: str(version) for alias, version in found.items() if alias != "candidate"}

    before = aliases()
    assert settle(client, NAME) == (History(NAME), [])
    assert aliases() == before, "without a list they are whatever somebody made them"

    client.create_registered_model(ledger_name(NAME))
    history = History(NAME)
    for version in ("1", "2"):
        entry = line(history.last + 1, history, version=version)
        tags = {key: str(getattr(entry, key)) for key in TAGS}
        client.create_model_version(ledger_name(NAME), entry.record, tags=tags)
        history = replay(NAME, [*history.entries, entry])
    found, moved = settle(client, NAME)
    assert found == history and not history.troubles
    assert aliases() == {"champion": "2", "previous_champion": "1"}
    assert len(moved) == (champion != "2") + (previous != "1")
    assert settle(client, NAME)[1] == []


def test_a_line_that_is_no_line_is_reported(tracking_uri: str) -> None:
    client = MlflowClient(tracking_uri=tracking_uri)
    client.create_registered_model(ledger_name(NAME))
    client.create_model_version(ledger_name(NAME), "dbfs:/nowhere", tags={"action": "promote", "follows": "none"})
    client.create_model_version(ledger_name(NAME), "dbfs:/nowhere")
    history = read_history(client, NAME)
    assert (history.champion, history.last) == ("", 0)
    assert history.troubles == ("decision 1 is not as it was written", "decision 2 is no decision: action ''")
