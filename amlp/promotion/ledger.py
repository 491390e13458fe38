"""Who became champion, when, by whom and why: an append-only list of decisions in MLflow, which the aliases follow.

MLflow keeps no history of aliases, and `champion` and `previous_champion` can only be moved one after the other. So the
truth is a list, and the aliases are its last line. Each decision is a version of a registered model of its own,
`<name>-decisions`: the server makes a version with all its tags in one transaction, and numbers versions without gaps
in the order in which they become visible. So everybody reads the same list in the same order.

A change names the change that it follows. Of two that follow the same one, the first in the list is in force, and the
other one is void and stays in the list as such: its writer gets an error. No lock is held, so none can be left behind.
What is killed before its line is written has changed nothing; what is killed after it is finished by the next command,
see `settle`.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from amlp.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, PREVIOUS = "champion", "previous_champion"
Action = Literal["promote", "rollback", "keep", "refuse"]
CHANGES: tuple[Action, ...] = ("promote", "rollback")
# So many that write at the same moment get through; the server itself tries three times.
_TRIES = 40
_FIELDS = ("action", "version", "before", "follows", "at", "actor", "reason", "summary", "record_sha256", "chain")


class Overtaken(UserError):
    """Somebody else's change came first; nothing was changed."""


@dataclass(frozen=True)
class Entry:
    """One line of the list.

    Args:
        number: 1, 2, ...
        action: what was decided about `version`.
        version: of the model; the new champion where the action is a change that is in force.
        before: the champion that the decision was made about; empty where there was none.
        follows: number of the change before this one, as the writer knew it; 0 for none.
        at: time in UTC, as ISO 8601 writes it, by the writer's clock.
        actor: who decided.
        reason: why, in one line.
        summary: the numbers behind it, in one line.
        record: address of the whole record, as JSON.
        record_sha256: of its bytes.
        chain: SHA-256 over this line and the chain of the change that it follows.
        void: somebody else's change came first.
    """

    number: int
    action: Action
    version: str
    before: str
    follows: int
    at: str
    actor: str
    reason: str
    summary: str
    record: str
    record_sha256: str
    chain: str
    void: bool = False

    def digest(self, before: str) -> str:
        """What `chain` must be, after the chain `before`."""
        parts = (self.action, self.version, self.before, str(self.follows), self.at, self.actor, self.reason,
                 self.summary, self.record, self.record_sha256)  # fmt: skip
        return hashlib.sha256(json.dumps([before, *parts]).encode()).hexdigest()


@dataclass(frozen=True)
class History:
    """All decisions about a model's versions, and what they come to.

    Args:
        name: of the registered model.
        entries: in their order.
        champion: version in force; empty for none.
        previous: the champion before.
        last: number of the last change in force; 0 for none.
        troubles: lines that were changed or lost since they were written.
    """

    name: str
    entries: tuple[Entry, ...] = ()
    champion: str = ""
    previous: str = ""
    last: int = 0
    troubles: tuple[str, ...] = ()

    @property
    def chain(self) -> str:
        return next((entry.chain for entry in self.entries if entry.number == self.last), "")


def ledger_name(name: str) -> str:
    """Name of the registered model whose versions are the decisions."""
    return f"{name}-decisions"


def read_history(client: MlflowClient, name: str) -> History:
    """Read the list and replay it.

    A champion that somebody made before there was a list counts: the first change says whom it found.
    """
    from mlflow import MlflowException

    versions, token = [], None
    while True:
        try:
            page = client.search_model_versions(
                f"name='{ledger_name(name)}'", max_results=1000, order_by=["version_number ASC"], page_token=token
            )
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                break
            raise
        versions += page
        token = page.token
        if not token:
            break
    return replay(name, sorted((_entry(version) for version in versions), key=lambda entry: entry.number))


def _entry(version: Any) -> Entry:
    tags = {key: str(version.tags.get(key, "")) for key in _FIELDS}
    text = tags.pop("follows")
    # What is no number nobody wrote like this, and its chain shows that.
    follows = int(text) if text.isdecimal() else -1
    return Entry(number=int(version.version), follows=follows, record=str(version.source), **tags)  # type: ignore[arg-type]


def replay(name: str, entries: Sequence[Entry]) -> History:
    """Work out which changes are in force and what they come to.

    Args:
        name: of the registered model.
        entries: by number.
    """
    seen: list[Entry] = []
    troubles: list[str] = []
    champion = previous = ""
    last = 0
    for place, entry in enumerate(entries, start=1):
        if entry.number != place and not troubles:
            troubles.append(f"decision {place} is missing from {ledger_name(name)}")
        if entry.action not in get_args(Action):
            troubles.append(f"decision {entry.number} is no decision: action {entry.action!r}")
            continue
        if entry.chain != entry.digest(_chain_of(seen, entry.follows)):
            troubles.append(f"decision {entry.number} is not as it was written")
        if entry.action in CHANGES:
            # Whom the first one found may have been made champion by hand, before there was a list.
            found = champion if last else entry.before
            if entry.follows == last and entry.before == found:
                champion, previous, last = entry.version, found, entry.number
            else:
                entry = replace(entry, void=True)
        seen.append(entry)
    return History(name, tuple(seen), champion, previous, last, tuple(troubles))


def _chain_of(entries: Sequence[Entry], number: int) -> str:
    return next((entry.chain for entry in entries if entry.number == number), "")


def who() -> str:
    """Who acts: the account at MLflow's server, else the user of this machine."""
    if account := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return account
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user has no name.
        return f"uid {os.getuid()}"


def append(
    client: MlflowClient,
    history: History,
    *,
    action: Action,
    version: str,
    before: str,
    record: Mapping[str, Any],
    reason: str,
    summary: str,
    actor: str = "",
) -> Entry:
    """Write one decision: the whole record as a file of the version's run, then the line.

    Args:
        history: as it was when the decision was made.
        action: what was decided.
        version: about which version.
        before: the champion at that time; empty for none.
        record: all that the decision was made by, as strict JSON takes it.
        reason: why, in a line.
        summary: the numbers, in a line.
        actor: who decides, if not who runs this; both are written down.

    Raises:
        Overtaken: somebody else's change came first. The line stays, as void.
        UserError: the server does not take it.
    """
    run_id = client.get_model_version(history.name, version).run_id
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    actor = f"{actor} (as {who()})" if actor and actor != who() else who()
    whole = {
        **record, "action": action, "model": history.name, "version": version, "champion_before": before,
        "follows": history.last, "at": at, "actor": actor, "reason": reason,
    }  # fmt: skip
    file = f"decisions/{at[:10]}-{uuid.uuid4().hex}.json"
    text = json.dumps(whole, indent=2, sort_keys=True, allow_nan=False)
    client.log_text(run_id, text, file)
    draft = Entry(
        number=0, action=action, version=version, before=before, follows=history.last, at=at, actor=actor,
        reason=reason, summary=summary, record=f"runs:/{run_id}/{file}",
        record_sha256=hashlib.sha256(text.encode()).hexdigest(), chain="",
    )  # fmt: skip
    tags = {key: str(getattr(draft, key)) for key in _FIELDS} | {"chain": draft.digest(history.chain)}
    if not history.entries:
        # First, for a server with accounts answers about what is not there that it is forbidden.
        _create(client, history.name)
    number = _append(client, history.name, draft, tags, run_id)
    [written] = [entry for entry in read_history(client, history.name).entries if entry.number == number]
    if written.void:
        winner = next(e for e in read_history(client, history.name).entries if e.follows == history.last and not e.void
                      and e.action in CHANGES)  # fmt: skip
        raise Overtaken(
            f"{history.name} version {version} is not champion: {winner.actor} came first, decision {winner.number} "
            f"({winner.action} of version {winner.version}). Decide again, against the champion of now."
        )
    return written


def _append(client: MlflowClient, name: str, draft: Entry, tags: Mapping[str, str], run_id: str) -> int:
    from mlflow import MlflowException

    book = ledger_name(name)
    for attempt in range(_TRIES):
        try:
            made = client.create_model_version(
                book, draft.record, run_id=run_id, tags=dict(tags), description=_described(draft)
            )
            return int(made.version)
        except MlflowException as error:
            if "Model Version creation error" not in str(error) or attempt == _TRIES - 1:
                raise
            # Others write at this very moment.
            time.sleep(random.uniform(0.01, 0.1 * min(attempt + 1, 10)))
    raise UserError(f"{book}: too many write at a time; try again.")


def _create(client: MlflowClient, name: str) -> None:
    from mlflow import MlflowException

    try:
        client.create_registered_model(
            ledger_name(name),
            description=f"Decisions about {name}, one a version, in order. `amlp promote` and `amlp rollback` write "
            "them, `amlp history` reads them; never edit or delete one.",
        )
    except MlflowException as error:
        # Another one was first.
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _described(entry: Entry) -> str:
    over = f" over version {entry.before}" if entry.before else ""
    text = f"{entry.action} version {entry.version}{over}, {entry.actor}, {entry.at}: {entry.reason}. {entry.summary}"
    # MLflow takes no longer ones.
    return text[:5000]


def settle(client: MlflowClient, name: str) -> tuple[History, list[str]]:
    """Move the aliases to where the list says, and return what was moved.

    This finishes a promotion that was killed between its writes, and undoes what was done past the list. Where there is
    no list yet, aliases stay as they are.
    """
    moved: list[str] = []
    while True:
        history = read_history(client, name)
        if not history.last:
            return history, moved
        aliases = {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
        # The previous one first: in between, both are the old champion, and none is lost.
        for alias, version in ((PREVIOUS, history.previous), (CHAMPION, history.champion)):
            there = aliases.get(alias, "")
            if there == version:
                continue
            if version:
                client.set_registered_model_alias(name, alias, version)
            else:
                client.delete_registered_model_alias(name, alias)
            old, new = (f"version {one}" if one else "none" for one in (there, version))
            moved.append(f"{alias} was {old}, is {new} by decision {history.last}")
        # Somebody may have written another line, and its aliases before ours.
        if read_history(client, name).last == history.last:
            return history, moved
