"""The gate in MLflow's registry: a candidate is judged against the champion, and takes its place when it may."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amlp.errors import UserError
from amlp.files import sha256
from amlp.params import GateParams
from amlp.registry.decision import Decision, FrozenSplit, Model, Side
from amlp.registry.gate import decide, refuse
from amlp.registry.register import CHAMPION
from amlp.registry.tracking import connect, import_mlflow, resolve_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PREVIOUS = "previous_champion"
_WEIGHTS = "segmenter.pt"
# Tag of a version: the champion's version that it was judged against; empty where there was none.
_REFERENCE = "gate_reference_version"


def find_reference(*, registration: Mapping[str, Any]) -> str:
    """Return the version of the champion that the registered candidate has to beat; empty where there is none.

    Where the candidate is the champion itself, that is what it was judged against on its way there: nothing is new.

    Raises:
        UserError: MLflow can't be reached.
    """
    entry = registration["segmenter"]
    with connect(resolve_uri(registration["tracking_uri"], Path())) as client:
        version = _aliased(client, entry["name"], CHAMPION)
        if version is None:
            return ""
        if str(version.version) == str(entry["version"]):
            # Without the tag nobody judged it: a person made it the champion.
            return str(version.tags.get(_REFERENCE, version.version))
        return str(version.version)


def judge_candidate(
    *,
    params: GateParams,
    registration: Mapping[str, Any],
    version: str,
    ingest: Path,
    shards: Path,
    segmenter: Path,
    scratch: Path,
) -> Decision:
    """Score the registered candidate and the champion in one job on the test split, and decide.

    Where there is no champion yet, the model from scratch is what the candidate has to beat.

    Args:
        params: thresholds.
        registration: what `register` wrote.
        version: of the champion, as `find_reference` finds it.
        ingest: folder of the native-size images and masks.
        shards: folder with the index of the splits.
        segmenter: folder of the candidate.
        scratch: folder of the model from scratch.

    Raises:
        UserError: MLflow can't be reached, the folder is not what was registered, or an image is unreadable.
    """
    from amlp.data.shards import ShardedSplit
    from amlp.evaluation.evaluate import score_cases
    from amlp.models.predictor import Predictor

    entry = registration["segmenter"]
    weights = segmenter / _WEIGHTS
    challenger = Model(f"{entry['name']} version {entry['version']}", sha256(weights))
    if challenger.digest != entry["model_sha256"]:
        raise UserError(f"{weights}: SHA-256 {challenger.digest}, registered was {entry['model_sha256']}.")
    test = ShardedSplit.open(shards, "test").index
    test = test[test["labelled"]].sort_values("case_id")
    job = uuid.uuid4().hex
    with connect(resolve_uri(registration["tracking_uri"], Path())) as client, tempfile.TemporaryDirectory() as folder:
        champion = client.get_model_version(entry["name"], version) if version else None
        if champion is None:
            file = scratch / _WEIGHTS
            reference = Model("the model from scratch", sha256(file))
            recorded = registration["lineage"]["test_hash"]
        else:
            reference = Model(f"{entry['name']} version {version}", champion.tags["model_sha256"])
            recorded = champion.tags["test_hash"]
        split = FrozenSplit(recorded, frozenset(test["case_id"]))
        try:
            if champion is not None:
                file = _download(champion, Path(folder))
            predictors = {"challenger": Predictor.load(weights), "reference": Predictor.load(file)}
        except Exception as error:  # Whatever MLflow, its store or torch raises: nobody may be promoted past it.
            return refuse(
                "unreadable_model", f"A model can't be loaded: {error}", challenger=challenger, reference=reference,
                role="champion" if champion else "baseline", split=split, params=params, job=job,
            )  # fmt: skip
    cases, digest = score_cases({name: one.mask for name, one in predictors.items()}, test=test, ingest=ingest)

    def side(model: Model, name: str) -> Side:
        table = cases[cases["model"] == name].drop(columns="model")
        return Side(model.name, model.digest, test_hash=digest, job=job, cases=table)

    opponent = side(reference, "reference")
    return decide(
        challenger=side(challenger, "challenger"),
        champion=opponent if champion else None,
        baseline=opponent,
        split=split,
        params=params,
    )


def record_decision(*, record: Mapping[str, Any], registration: Mapping[str, Any], version: str) -> None:
    """Keep a decision with the candidate: `decision.json` on its run, the outcome as tags of the version.

    Args:
        record: `Decision.as_dict()`.
        registration: what `register` wrote.
        version: what `judge_candidate` was given.
    """
    entry = registration["segmenter"]
    with connect(resolve_uri(registration["tracking_uri"], Path())) as client:
        client.log_dict(registration["parent_run_id"], dict(record), "decision.json")
        for key in ("outcome", "reason", "explanation"):
            client.set_model_version_tag(entry["name"], entry["version"], f"gate_{key}", record[key])
        client.set_model_version_tag(entry["name"], entry["version"], "gate_reference", record["reference"]["name"])
        client.set_model_version_tag(entry["name"], entry["version"], _REFERENCE, version)


def promote(*, record: Mapping[str, Any], registration: Mapping[str, Any]) -> None:
    """Make the candidate the champion, and the champion the previous one.

    Raises:
        UserError: the decision is none to promote this candidate, or there is another champion since it was made.
    """
    entry = registration["segmenter"]
    name = f"{entry['name']} version {entry['version']}"
    if record["outcome"] != "promote" or record["challenger"] != {"name": name, "digest": entry["model_sha256"]}:
        raise UserError(f"{name}: the decision is to {record['outcome']}, about {record['challenger']['name']}.")
    with connect(resolve_uri(registration["tracking_uri"], Path())) as client:
        version = _aliased(client, entry["name"], CHAMPION)
        found = f"{entry['name']} version {version.version}" if version else None
        if found == name:
            # Another try of the same task.
            return
        judged = record["reference"]["name"] if record["reference"]["role"] == "champion" else None
        if found != judged:
            raise UserError(
                f"{name} was judged against {judged or 'the model from scratch'}, and the champion is now "
                f"{found or 'none'}; submit the run again, and it is judged against that one."
            )
        if version:
            client.set_registered_model_alias(entry["name"], PREVIOUS, version.version)
        client.set_registered_model_alias(entry["name"], CHAMPION, entry["version"])


def _aliased(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    version = client.get_registered_model(name).aliases.get(alias)
    return None if version is None else client.get_model_version(name, str(version))


def _download(version: ModelVersion, folder: Path) -> Path:
    """Fetch a registered segmenter's weights, and check that they are what was registered."""
    mlflow = import_mlflow()
    place = f"models:/{version.name}/{version.version}"
    root = Path(mlflow.artifacts.download_artifacts(artifact_uri=place, dst_path=str(folder)))
    [file] = root.rglob(_WEIGHTS)
    if (digest := sha256(file)) != version.tags["model_sha256"]:
        raise UserError(f"{place}: SHA-256 {digest}, registered was {version.tags['model_sha256']}.")
    return file
