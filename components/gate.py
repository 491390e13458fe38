"""Components of the gate: what the candidate has to beat, whether it does, and its promotion."""

from typing import NamedTuple

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.common import stage


@stage
def find_reference(registration: Input[Artifact]) -> str:
    """Find the version that the candidate has to beat, for the gate's cache to know it; empty without a champion."""
    from pathlib import Path

    from amlp.environment import quiet
    from amlp.files import read_json
    from amlp.registry import promotion
    from amlp.registry.tracking import connect

    quiet()
    registered = read_json(Path(registration.path))
    with connect(registered["tracking_uri"]) as client:
        found = promotion.find_reference(client, promotion.Candidate.registered(registered))
    print(f"The candidate has to beat {f'version {found}' if found else 'the model from scratch'}.")
    return found


@stage
def gate(
    params: str,
    reference: str,
    cases: Input[Dataset],
    shards: Input[Dataset],
    scratch: Input[Model],
    registration: Input[Artifact],
    decision: Output[Artifact],
) -> NamedTuple("Outcome", [("outcome", str)]):  # type: ignore[valid-type]
    """Compare the candidate with the champion on the test split: promote, keep or refuse.

    Args:
        params: JSON of all parameters.
        reference: version of the champion; empty without one.
    """
    import json
    from pathlib import Path
    from typing import NamedTuple

    from amlp.environment import quiet
    from amlp.files import read_json, write_json
    from amlp.params import parse_params
    from amlp.registry import promotion
    from amlp.registry.tracking import connect

    class Outcome(NamedTuple):
        outcome: str

    quiet()
    registered = read_json(Path(registration.path))
    candidate = promotion.Candidate.registered(registered)
    with connect(registered["tracking_uri"]) as client:
        found = promotion.judge(
            client,
            candidate,
            reference=reference,
            params=parse_params(json.loads(params), "params").gate,
            ingest=Path(cases.path),
            shards=Path(shards.path),
            scratch=Path(scratch.path),
        )
        record = found.as_dict()
        if found.outcome != "promote":
            promotion.conclude(client, candidate, record, reference=reference)
    write_json(Path(decision.path), record)
    decision.metadata.update(outcome=found.outcome, reason=found.reason, explanation=found.explanation)
    print(f"{found.outcome} ({found.reason}): {found.explanation}")
    if found.reason == "unreadable_model":
        # Written down, and not for the cache: storage that does not answer looks the same, and may answer tomorrow.
        raise SystemExit(1)
    return Outcome(found.outcome)


@stage
def promote(reference: str, decision: Input[Artifact], registration: Input[Artifact]) -> None:
    """Make the candidate the champion."""
    from pathlib import Path

    from amlp.environment import quiet
    from amlp.files import read_json
    from amlp.registry import promotion
    from amlp.registry.tracking import connect

    quiet()
    registered = read_json(Path(registration.path))
    with connect(registered["tracking_uri"]) as client:
        promotion.conclude(
            client,
            promotion.Candidate.registered(registered),
            read_json(Path(decision.path)),
            reference=reference,
        )
