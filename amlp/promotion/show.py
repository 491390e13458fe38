"""`amlp show`: a version of the segmenter, what was decided about it, and where it comes from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from amlp.errors import UserError
from amlp.promotion.ledger import History
from amlp.promotion.promote import Candidate
from amlp.records import parse_record
from amlp.registry.card import CARDS, Card, chain, reproduce
from amlp.registry.tracking import import_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient


def show(client: MlflowClient, candidate: Candidate, history: History) -> str:
    """Return what is known about a version, as text; within `tracking.connect`.

    Args:
        client: of the registry.
        candidate: the version.
        history: of its model.
    """
    version = client.get_model_version(candidate.name, candidate.version)
    found = client.get_registered_model(candidate.name).aliases
    aliases = sorted(alias for alias, number in found.items() if str(number) == candidate.version)
    lines = [f"{candidate}" + (f" ({', '.join(aliases)})" if aliases else "")]
    if version.description:
        lines.append(version.description)
    decided = [entry for entry in history.entries if entry.version == candidate.version]
    for entry in decided:
        void = ", void: another change came first" if entry.void else ""
        lines.append(f"- decision {entry.number}, {entry.action}{void}, {entry.at}, by {entry.actor}: {entry.reason}")
    if not decided:
        lines.append("- nothing was decided about it")
    card = read_card(client, version.run_id, "segmenter")
    if card is None:
        # Registered by an earlier release: its tags are what there is.
        return "\n".join([*lines, *(f"- {key}: {value}" for key, value in sorted(version.tags.items()))])
    lines += chain(card, tracking_uri=client.tracking_uri)
    encoder = read_card(client, version.run_id, "encoder")
    if encoder:
        training = ", ".join(f"{key} {value}" for key, value in sorted(encoder.training.items())[:6])
        lines.append(f"- the encoder's pre-training: {training}")
    return "\n".join(
        [*lines, "", "Made again by:", *(f"  {line}" for line in reproduce(card, tracking_uri=client.tracking_uri))]
    )


def read_card(client: MlflowClient, run_id: str, kind: str) -> Card | None:
    """Return a version's lineage card, or None where the run has none."""
    mlflow = import_mlflow()
    place = f"{CARDS}/{kind}"
    if f"{place}/card.json" not in {item.path for item in client.list_artifacts(run_id, place)}:
        return None
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/{place}/card.json")
    origin = f"{place}/card.json of run {run_id}"
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{origin}: no JSON ({error}). Register the run again.") from error
    return parse_record(values, Card, origin)
