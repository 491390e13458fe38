"""Component of the gate, a run's last task: whether the candidate becomes champion, and that the run succeeded."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.common import stage


@stage
def gate(
    params: str,
    data_rev: str,
    cases: Input[Dataset],
    shards: Input[Dataset],
    scratch: Input[Model],
    registration: Input[Artifact],
    decision: Output[Artifact],
) -> str:
    """Compare the candidate with the champion on the test split, promote it if it is better, and record the success.

    Never from Kubeflow's cache, which does not know who is champion. What was decided before about the same models is
    taken from the registry's history instead.

    Args:
        data_rev: commit of the images; empty for generated ones.
    """
    import json
    import logging
    from pathlib import Path
    from typing import Any

    from amlp.errors import UserError
    from amlp.files import write_json
    from amlp.params import RegisterParams, parse_params
    from amlp.promotion import promote
    from amlp.promotion.ledger import Overtaken
    from amlp.registry.outcome import record_success
    from amlp.registry.registration import Registration
    from amlp.registry.tracking import connect

    logger = logging.getLogger("components.gate")

    registered = Registration.read(Path(registration.path))
    candidate = promote.Candidate.registered(registered)
    thresholds = parse_params(json.loads(params), "gate_params").gate

    def decide() -> tuple[dict[str, Any], bool]:
        reference = promote.find_reference(client, candidate)
        logger.info(f"The candidate has to beat {f'version {reference}' if reference else 'the model from scratch'}.")
        found = promote.decided_before(
            client, candidate, reference=reference, params=thresholds, scratch=Path(scratch.path)
        )
        if found:
            # Not carried out again: a rollback may have come after it.
            return found, True
        found = promote.judge(
            client,
            candidate,
            reference=reference,
            params=thresholds,
            ingest=Path(cases.path),
            shards=Path(shards.path),
            scratch=Path(scratch.path),
        ).as_dict()
        promote.conclude(client, candidate, found, reference=reference)
        return found, False

    with connect(registered.tracking_uri) as client:
        try:
            record, before = decide()
        except Overtaken as error:
            # Another run's candidate is champion since: it is the one to beat.
            logger.info(f"{error}\nJudging again.")
            record, before = decide()
        promote.settle(client, candidate.name)
    write_json(Path(decision.path), record)
    decision.metadata.update({key: record[key] for key in ("outcome", "reason", "explanation")})
    said = f"{record['outcome']} ({record['reason']}): {record['explanation']}"
    logger.info(f"{said}{' As decided before.' if before else ''}")
    if record["reason"] == "unreadable_model":
        # Storage that does not answer looks the same.
        raise UserError(said)
    where = RegisterParams(tracking_uri=registered.tracking_uri, experiment=registered.experiment)
    tags = {**registered.source, "source_rev": data_rev}
    run_id = record_success(params=where, tags={name: value for name, value in tags.items() if value})
    logger.info(f"Recorded in MLflow run {run_id}")
    return str(record["outcome"])
