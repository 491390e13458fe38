"""The gate in MLflow's registry: a candidate is judged against the champion, and takes its place when it may."""

from __future__ import annotations

import hashlib
import json
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amlp.errors import UserError
from amlp.files import sha256
from amlp.layout import SegmenterFolder
from amlp.params import GateParams
from amlp.promotion.decision import Decision, FrozenSplit, Model, Side
from amlp.promotion.gate import decide, refuse
from amlp.promotion.ledger import CHAMPION, Entry, History, Overtaken, append, read_history, settle
from amlp.registry.registration import Registration
from amlp.registry.tracking import import_mlflow
from amlp.registry.weights import fetch_segmenter

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Candidate:
    """A version of a registered segmenter."""

    name: str
    version: str

    @classmethod
    def registered(cls, registration: Registration) -> Candidate:
        """The segmenter of a registration.json."""
        return cls(registration.segmenter.name, registration.segmenter.version)

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


def find_version(client: MlflowClient, name: str, wanted: str) -> Candidate:
    """Find a version by number or alias.

    Raises:
        UserError: there is none.
    """
    from mlflow import MlflowException

    try:
        aliases = {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
        found = wanted if wanted.isdecimal() else aliases[wanted]
        client.get_model_version(name, found)
    except KeyError:
        raise UserError(
            f"{name}: no version has the alias {wanted!r}; there are {', '.join(sorted(aliases)) or 'none'}."
        ) from None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(f"{name}: no version {wanted} is registered at {client.tracking_uri}.") from error
    return Candidate(name, found)


def champion_of(client: MlflowClient, history: History) -> str:
    """Return the champion's version by the decisions, or by the alias where there are none yet; empty for none."""
    if history.last:
        return history.champion
    return str(client.get_registered_model(history.name).aliases.get(CHAMPION, ""))


def find_reference(client: MlflowClient, candidate: Candidate) -> str:
    """Return the version of the champion that a candidate has to beat; empty where there is none.

    Where the candidate is the champion itself, that is the one it took the place of: nothing is new.
    """
    history = read_history(client, candidate.name)
    champion = champion_of(client, history)
    if champion != candidate.version or not history.last:
        return champion
    return next(entry.before for entry in history.entries if entry.number == history.last)


def judge(
    client: MlflowClient,
    candidate: Candidate,
    *,
    reference: str,
    params: GateParams,
    ingest: Path,
    shards: Path,
    scratch: Path,
) -> Decision:
    """Score a candidate and the champion in one job on the test split, and decide.

    Both are loaded from the registry. Where there is no champion yet, the model from scratch is what the candidate has
    to beat.

    Args:
        client: of the registry, within `tracking.connect`.
        candidate: that may become champion.
        reference: version of the champion, as `find_reference` finds it; empty where there is none.
        params: thresholds.
        ingest: folder of the native-size images and masks.
        shards: folder with the index of the splits.
        scratch: folder of the model from scratch.

    Raises:
        UserError: MLflow can't be reached, or an image or the model from scratch is unreadable.
    """
    from amlp.data.shards import ShardedSplit
    from amlp.evaluation.evaluate import score_cases
    from amlp.models.predictor import Predictor

    test = ShardedSplit.open(shards, "test").index
    test = test[test["labelled"]].sort_values("case_id")
    job = uuid.uuid4().hex
    registered = client.get_model_version(candidate.name, candidate.version)
    champion = client.get_model_version(candidate.name, reference) if reference else None
    challenger = Model(str(candidate), registered.tags["model_sha256"])
    if champion is None:
        file = SegmenterFolder(scratch).weights
        if not file.is_file():
            raise UserError(f"{file}: not found; a first champion has to beat the model from scratch, see --scratch.")
        opponent = Model("the model from scratch", sha256(file))
        split = FrozenSplit(registered.tags["test_hash"], frozenset(test["case_id"]))
    else:
        opponent = Model(str(Candidate(candidate.name, reference)), champion.tags["model_sha256"])
        split = FrozenSplit(champion.tags["test_hash"], frozenset(test["case_id"]))
    with tempfile.TemporaryDirectory() as folder:
        try:
            predictors = {"challenger": Predictor.load(fetch_segmenter(registered, Path(folder, "challenger")))}
            if champion is not None:
                file = fetch_segmenter(champion, Path(folder, "champion"))
            predictors["reference"] = Predictor.load(file)
        except Exception as error:  # Whatever MLflow, its store or torch raises: nobody may be promoted past it.
            return refuse(
                "unreadable_model", f"A model can't be loaded: {error}", challenger=challenger, reference=opponent,
                role="champion" if champion else "baseline", split=split, params=params, job=job,
            )  # fmt: skip
    cases, digest = score_cases({name: one.mask for name, one in predictors.items()}, test=test, ingest=ingest)

    def side(model: Model, name: str) -> Side:
        table = cases[cases["model"] == name].drop(columns="model")
        return Side(model.name, model.digest, test_hash=digest, job=job, cases=table)

    other = side(opponent, "reference")
    return decide(
        challenger=side(challenger, "challenger"),
        champion=other if champion else None,
        baseline=other,
        split=split,
        params=params,
    )


def conclude(
    client: MlflowClient,
    candidate: Candidate,
    record: Mapping[str, Any],
    *,
    reference: str,
    reason: str = "",
    actor: str = "",
) -> Entry | None:
    """Write a decision down, and make the candidate champion if it is one to promote.

    Args:
        client: of the registry, within `tracking.connect`.
        candidate: that was judged.
        record: `Decision.as_dict()`.
        reference: version that it was judged against, as `judge` was given it.
        reason: somebody's own words, besides the gate's.
        actor: who decides, if not who runs this.

    Returns:
        The line of the history; None where the candidate is champion already, as when a task is tried again.

    Raises:
        Overtaken: somebody else's promotion came first: there is another champion than it was judged against.
        UserError: the decision is about another candidate.
    """
    registered = client.get_model_version(candidate.name, candidate.version)
    if record["challenger"] != {"name": str(candidate), "digest": registered.tags["model_sha256"]}:
        raise UserError(f"{candidate}: the decision is about {record['challenger']['name']}.")
    history, _ = settle(client, candidate.name)
    champion = champion_of(client, history)
    outcome = record["outcome"]
    if outcome == "promote":
        if champion == candidate.version:
            return None
        if champion != reference:
            raise Overtaken(
                f"{candidate} was judged against {f'version {reference}' if reference else 'the model from scratch'}, "
                f"and the champion is now {f'version {champion}' if champion else 'none'}: let it be judged again."
            )
    why = "; ".join(filter(None, (reason, f"gate: {record['reason']}")))
    entry = append(
        client, history, action=outcome, version=candidate.version, before=reference, record={"gate": dict(record)},
        reason=why, summary=record["explanation"], actor=actor,
    )  # fmt: skip
    # For whoever looks at the version's page; the history is what counts.
    for key in ("outcome", "reason", "explanation"):
        client.set_model_version_tag(candidate.name, candidate.version, f"gate_{key}", record[key])
    client.set_model_version_tag(candidate.name, candidate.version, "gate_reference", record["reference"]["name"])
    if outcome == "promote":
        settle(client, candidate.name)
    return entry


def decided_before(
    client: MlflowClient, candidate: Candidate, *, reference: str, params: GateParams, scratch: Path
) -> dict[str, Any] | None:
    """Find what was decided before about the same candidate, opponent and thresholds.

    Args:
        client: of the registry, within `tracking.connect`.
        candidate: that may become champion.
        reference: version of the champion, as `find_reference` finds it; empty where there is none.
        params: thresholds.
        scratch: folder of the model from scratch.

    Returns:
        `Decision.as_dict()`; None where nothing was decided, or a model could not be read then.

    Raises:
        UserError: the record is not the one that the history is about.
    """
    mlflow = import_mlflow()
    for entry in reversed(read_history(client, candidate.name).entries):
        if entry.void or (entry.version, entry.before) != (candidate.version, reference) or entry.action == "rollback":
            continue
        text = mlflow.artifacts.load_text(entry.record)
        if (digest := hashlib.sha256(text.encode()).hexdigest()) != entry.record_sha256:
            raise UserError(f"{entry.record}: SHA-256 {digest}, the history says {entry.record_sha256}.")
        record: dict[str, Any] = json.loads(text)["gate"]
        opponent = None if reference else sha256(SegmenterFolder(scratch).weights)
        if (
            record["reason"] != "unreadable_model"
            and record["thresholds"] == params.model_dump()
            and opponent in (None, record["reference"]["digest"])
        ):
            return record
    return None


def rollback(
    client: MlflowClient, name: str, *, to: str = "", reason: str, actor: str = "", dry_run: bool = False
) -> tuple[str, str]:
    """Make an earlier champion the champion again, without the gate.

    Args:
        client: of the registry, within `tracking.connect`.
        name: of the registered segmenter.
        to: version; empty for the previous champion.
        reason: why; whoever reads the history must understand it.
        actor: who decides, if not who runs this.
        dry_run: check everything and change nothing.

    Returns:
        The versions of the old and of the new champion.

    Raises:
        Overtaken: somebody else's change came first.
        UserError: there is nothing to go back to, the version never was champion, or its file is not what it was.
    """
    if not reason.strip():
        raise UserError("--reason: say why, for those who will ask.")
    history, _ = settle(client, name)
    champion = champion_of(client, history)
    target = to or history.previous
    if not champion or not target:
        raise UserError(f"{name}: there is no champion before {f'version {champion}' if champion else 'any'}.")
    if target == champion:
        raise UserError(f"{name}: version {target} is the champion.")
    changes = [entry for entry in history.entries if entry.action in ("promote", "rollback") and not entry.void]
    if target not in {version for entry in changes for version in (entry.version, entry.before)}:
        raise UserError(f"{name}: version {target} never was champion; `amlp promote {target}` asks the gate.")
    with tempfile.TemporaryDirectory() as folder:
        fetch_segmenter(client.get_model_version(name, target), Path(folder))
    if not dry_run:
        append(
            client, history, action="rollback", version=target, before=champion, record={}, reason=reason.strip(),
            summary=f"back to version {target} from version {champion}", actor=actor,
        )  # fmt: skip
        settle(client, name)
    return champion, target
