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
    from amlp.registry.promotion import find_reference

    quiet()
    found = find_reference(registration=read_json(Path(registration.path)))
    print(f"The candidate has to beat {f'version {found}' if found else 'the model from scratch'}.")
    return found


@stage
def gate(
    params: str,
    reference: str,
    cases: Input[Dataset],
    shards: Input[Dataset],
    segmenter: Input[Model],
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
    from amlp.registry.promotion import judge_candidate, record_decision

    class Outcome(NamedTuple):
        outcome: str

    quiet()
    registered = read_json(Path(registration.path))
    found = judge_candidate(
        params=parse_params(json.loads(params), "params").gate,
        registration=registered,
        version=reference,
        ingest=Path(cases.path),
        shards=Path(shards.path),
        segmenter=Path(segmenter.path),
        scratch=Path(scratch.path),
    )
    record = found.as_dict()
    record_decision(record=record, registration=registered, version=reference)
    write_json(Path(decision.path), record)
    decision.metadata.update(outcome=found.outcome, reason=found.reason, explanation=found.explanation)
    print(f"{found.outcome} ({found.reason}): {found.explanation}")
    if found.reason == "unreadable_model":
        # Recorded, and not for the cache: storage that does not answer looks the same, and may answer tomorrow.
        raise SystemExit(1)
    return Outcome(found.outcome)


@stage
def promote(decision: Input[Artifact], registration: Input[Artifact]) -> None:
    """Make the candidate the champion."""
    from pathlib import Path

    from amlp.environment import quiet
    from amlp.files import read_json
    from amlp.registry.promotion import promote

    quiet()
    promote(record=read_json(Path(decision.path)), registration=read_json(Path(registration.path)))
