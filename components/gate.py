"""Components of the gate: what the candidate has to beat, whether it does, and the run's end."""

from typing import NamedTuple

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.common import stage


@stage
def find_reference(registration: Input[Artifact]) -> str:
    """Find the version that the candidate has to beat, for the gate's cache to know it; empty without a champion."""
    from pathlib import Path

    from amlp.files import read_json
    from amlp.registry import promotion
    from amlp.registry.tracking import connect

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

    from amlp.errors import UserError
    from amlp.files import read_json, write_json
    from amlp.params import parse_params
    from amlp.registry import promotion
    from amlp.registry.tracking import connect

    class Outcome(NamedTuple):
        outcome: str

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
        raise UserError(f"{found.outcome} ({found.reason}): {found.explanation}")
    return Outcome(found.outcome)


@stage
def conclude(
    params: str,
    data_uri: str,
    data_md5: str,
    data_rev: str,
    git_commit: str,
    reference: str,
    decision: Input[Artifact],
    registration: Input[Artifact],
) -> None:
    """Make the candidate the champion if the gate says so, and record in MLflow that the pipeline run succeeded.

    Args:
        params: JSON of all parameters.
        data_uri: of the images in DVC's remote; empty for generated images, as data_md5 and data_rev.
        reference: version that the candidate was judged against; empty without one.
    """
    import json
    from pathlib import Path

    from amlp.files import read_json
    from amlp.params import parse_params
    from amlp.registry import promotion
    from amlp.registry.outcome import record_success
    from amlp.registry.tracking import connect

    registered, judged = read_json(Path(registration.path)), read_json(Path(decision.path))
    if judged["outcome"] == "promote":
        with connect(registered["tracking_uri"]) as client:
            candidate = promotion.Candidate.registered(registered)
            # A decision from the cache must not undo a rollback that came after it.
            if promotion.carried_out(client, candidate, reference=reference):
                promotion.settle(client, candidate.name)
                print(f"{candidate} was promoted by this decision before; the champion stays as it is.")
            else:
                promotion.conclude(client, candidate, judged, reference=reference)
    tags = {"source_uri": data_uri, "source_md5": data_md5, "source_rev": data_rev, "git_commit": git_commit}
    settings = parse_params(json.loads(params), "params")
    run_id = record_success(params=settings.register_, tags={name: value for name, value in tags.items() if value})
    print(f"{judged['outcome']}: recorded in MLflow run {run_id}")
