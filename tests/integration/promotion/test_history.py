"""Many promotions at once, and promotions that are killed, against MLflow's server with PostgreSQL, S3 and accounts."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from amlp.cli import main
from amlp.errors import UserError
from amlp.models.predictor import Predictor
from amlp.promotion.ledger import Overtaken, ledger_name, read_history
from amlp.promotion.promote import Candidate, conclude, rollback
from amlp.registry.register import register
from amlp.registry.tracking import connect
from amlp.registry.weights import fetch_segmenter
from devtools.servers import MlflowServer
from tests.integration.registry.test_server import account, environment_of
from tests.support.stage_outputs import write_stage_outputs

pytestmark = pytest.mark.timeout(900)

# Processes that act at once share nothing but the server.
FORK = multiprocessing.get_context("fork")
# All that writes to MLflow.
WRITES = ("log_text", "create_registered_model", "create_model_version", "set_model_version_tag",
          "set_registered_model_alias", "delete_registered_model_alias")  # fmt: skip


@pytest.fixture(scope="module")
def author(mlflow_platform: MlflowServer) -> MlflowServer:
    return account(mlflow_platform, "promoter")


@pytest.fixture(scope="module")
def registered(author: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A version of a segmenter, to make versions of other names from."""
    from amlp.params import parse_params

    root = tmp_path_factory.mktemp("root")
    write_stage_outputs(root, epochs=3)
    names = {"experiment": "history", "encoder_name": "history-encoder", "segmenter_name": "history-segmenter"}
    params = parse_params({"register": {"tracking_uri": author.address, **names}}, "test")
    with environment_of(author):
        made = register(params=params, root=root, data_md5="0123456789abcdef0123456789abcdef.dir")
        version = MlflowClient(tracking_uri=author.address).get_model_version("history-segmenter", "1")
        return SimpleNamespace(
            source=version.source, run_id=version.run_id, tags=version.tags, model_id=made["segmenter"]["model_id"]
        )


@pytest.fixture
def client(author: MlflowServer) -> Iterator[MlflowClient]:
    with environment_of(author), connect(author.address) as client:
        yield client


def model(client: MlflowClient, registered: Any, name: str, versions: int) -> None:
    """Make a model with versions of which the first is champion."""
    client.create_registered_model(name)
    for _ in range(versions):
        client.create_model_version(
            name, registered.source, run_id=registered.run_id, tags=registered.tags, model_id=registered.model_id
        )
    client.set_registered_model_alias(name, "champion", "1")


def verdict(registered: Any, candidate: Candidate) -> dict[str, Any]:
    """A decision to promote."""
    return {
        "outcome": "promote", "reason": "better", "explanation": "+0.03",
        "challenger": {"name": str(candidate), "digest": registered.tags["model_sha256"]},
        "reference": {"role": "champion", "name": "the one before"},
    }  # fmt: skip


def in_process(act: Callable[[], None]) -> Any:
    """Start a process that does it and ends with 0, or with 1 where it was overtaken."""

    def run() -> None:
        try:
            act()
        except (Overtaken, UserError):
            os._exit(1)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(2)
        os._exit(0)

    process = FORK.Process(target=run)
    process.start()
    return process


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def test_of_many_promotions_at_once_one_wins_and_the_others_are_errors(client: MlflowClient, registered: Any) -> None:
    name, count, champions = "history-many", 16, ["1"]
    model(client, registered, name, 1 + 2 * count)
    for turn in range(2):
        candidates = [Candidate(name, str(2 + turn * count + i)) for i in range(count)]
        ready = FORK.Barrier(count)

        def promoting(candidate: Candidate, reference: str = champions[-1], ready: Any = ready) -> None:
            ready.wait()
            conclude(
                MlflowClient(tracking_uri=client.tracking_uri), candidate, verdict(registered, candidate),
                reference=reference, actor=f"user {candidate.version}",
            )  # fmt: skip

        processes = [in_process(lambda one=candidate: promoting(one)) for candidate in candidates]
        for process in processes:
            process.join()
        codes = [process.exitcode for process in processes]
        assert sorted(codes) == [0] + [1] * (count - 1)
        winner = candidates[codes.index(0)].version
        assert aliases(client, name) == {"champion": winner, "previous_champion": champions[-1]}
        champions.append(winner)

    history = read_history(client, name)
    assert not history.troubles and history.champion == champions[-1]
    force = [entry for entry in history.entries if not entry.void]
    assert [(entry.before, entry.version) for entry in force] == list(pairwise(champions))
    assert [entry.actor for entry in force] == [f"user {version} (as promoter)" for version in champions[1:]]
    # Whoever wrote a line that came too late has it there, as void.
    assert all(entry.void == (entry not in force) for entry in history.entries)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_promotion_killed_at_any_write_is_finished_or_never_was(
    client: MlflowClient, registered: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    point, repaired = 0, 0
    while True:
        name = f"history-killed-{moment}-{point}"
        model(client, registered, name, 2)
        candidate = Candidate(name, "2")

        def promoting(point: int = point, candidate: Candidate = candidate) -> None:
            left = point
            mine = MlflowClient(tracking_uri=client.tracking_uri)

            def deadly(write: Callable[..., Any]) -> Callable[..., Any]:
                def call(*args: Any, **kwargs: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left == -1 and moment == "before":
                        os.kill(os.getpid(), signal.SIGKILL)
                    try:
                        return write(*args, **kwargs)
                    finally:
                        if left == -1:
                            os.kill(os.getpid(), signal.SIGKILL)

                return call

            for write in WRITES:
                setattr(mine, write, deadly(getattr(mine, write)))
            conclude(mine, candidate, verdict(registered, candidate), reference="1")

        process = in_process(promoting)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), point
        # The next command.
        params = tmp_path / "params.yaml"
        params.write_text(yaml.safe_dump({"register": {"tracking_uri": client.tracking_uri, "segmenter_name": name}}))
        assert main(["history", "--params", str(params)]) == 0
        said = capsys.readouterr()
        history = read_history(client, name)
        assert not history.troubles
        written = bool(history.entries)
        champion, previous = ("2", "1") if written else ("1", None)
        found = aliases(client, name)
        assert (found["champion"], found.get("previous_champion")) == (champion, previous), point
        assert ("promote version 2 over version 1" in said.out) == written
        repaired += "Repaired: champion was version 1, is version 2" in said.err
        # It loads, whoever it is.
        version = client.get_model_version_by_alias(name, "champion")
        Predictor.load(fetch_segmenter(version, tmp_path / f"champion-{point}"))
        # And the promotion can be made again.
        conclude(client, candidate, verdict(registered, candidate), reference="1")
        assert aliases(client, name) == {"champion": "2", "previous_champion": "1"}
        assert len(read_history(client, name).entries) == 1
        if process.exitcode == 0:
            break
        point += 1
    # Its file, the list, the line, four tags, two aliases.
    assert point >= 9 and repaired >= 2


def test_a_rollback_brings_back_who_was_champion(client: MlflowClient, registered: Any) -> None:
    name = "history-back"
    model(client, registered, name, 3)
    with pytest.raises(UserError, match="there is no champion before version 1"):
        rollback(client, name, reason="worse on the new scanner")
    for version, reference in (("2", "1"), ("3", "2")):
        conclude(client, Candidate(name, version), verdict(registered, Candidate(name, version)), reference=reference)
    with pytest.raises(UserError, match="--reason"):
        rollback(client, name, reason=" ")
    assert rollback(client, name, reason="look", dry_run=True) == ("3", "2")
    assert aliases(client, name)["champion"] == "3"
    assert rollback(client, name, reason="worse on the new scanner") == ("3", "2")
    assert aliases(client, name) == {"champion": "2", "previous_champion": "3"}
    assert rollback(client, name, to="1", reason="both were bad") == ("2", "1")
    client.create_model_version(name, registered.source, run_id=registered.run_id, model_id=registered.model_id)
    with pytest.raises(UserError, match="version 4 never was champion"):
        rollback(client, name, to="4", reason="try")
    last = read_history(client, name).entries[-1]
    assert (last.action, last.version, last.before, last.reason) == ("rollback", "1", "2", "both were bad")


def test_a_reader_reads_the_history_and_decides_nothing(
    client: MlflowClient, registered: Any, mlflow_platform: MlflowServer, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    name = "history-reader"
    model(client, registered, name, 3)
    conclude(client, Candidate(name, "2"), verdict(registered, Candidate(name, "2")), reference="1")
    # As if killed before its last write.
    client.set_registered_model_alias(name, "champion", "1")
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump({"register": {"tracking_uri": client.tracking_uri, "segmenter_name": name}}))
    with environment_of(account(mlflow_platform, "history-reader")):
        assert main(["history", "--params", str(params)]) == 0
        said = capsys.readouterr()
        assert "promote version 2 over version 1, by promoter" in said.out
        assert "this account may not move them" in said.err
        assert main(["rollback", "--params", str(params), "--reason", "mine"]) == 2
        assert "(403)" in capsys.readouterr().err
        mine = MlflowClient(tracking_uri=client.tracking_uri)
        with pytest.raises(UserError, match=r"\(403\)"), connect(client.tracking_uri):
            candidate = Candidate(name, "3")
            conclude(mine, candidate, verdict(registered, candidate), reference="2")
    assert len(read_history(client, name).entries) == 1
    assert ledger_name(name) in {found.name for found in client.search_registered_models()}
