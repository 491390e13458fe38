"""The registry on a server as clusters have it: accounts, PostgreSQL, and files in S3 that clients can't reach."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amlp.errors import UserError
from amlp.models.predictor import Predictor
from amlp.params import Params, parse_params
from amlp.registry.register import register
from amlp.registry.tracking import connect
from devtools.servers import MlflowServer, PostgresServer, S3Server
from tests.support.stage_outputs import write_stage_outputs

# The first test starts the server, which may take MLFLOW_START_SECONDS on a busy machine, and registers two models.
pytestmark = pytest.mark.timeout(900)

MD5 = "0123456789abcdef0123456789abcdef.dir"


@contextmanager
def environment_of(account: MlflowServer) -> Iterator[None]:
    """An environment that has the account's credentials, and none of S3."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_TRACKING_"))]:
            patch.delenv(name)
        for name, value in account.environment.items():
            patch.setenv(name, value)
        yield


def account(server: MlflowServer, name: str) -> MlflowServer:
    """The server as a new account sees it."""
    return replace(server, user=name, password=server.create_user(name))


@dataclass(frozen=True)
class Recorded:
    author: MlflowServer
    root: Path
    params: Params
    registration: dict[str, Any]


@pytest.fixture(scope="module")
def recorded(mlflow_platform: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """What an account without special rights registered."""
    root = tmp_path_factory.mktemp("root")
    write_stage_outputs(root, epochs=3)
    names = {"experiment": "accounts", "encoder_name": "accounts-encoder", "segmenter_name": "accounts-segmenter"}
    params = parse_params({"register": {"tracking_uri": mlflow_platform.address, **names}}, "test")
    author = account(mlflow_platform, "author")
    with environment_of(author):
        return Recorded(author, root, params, register(params=params, root=root, data_md5=MD5))


@pytest.fixture(scope="module")
def reader(mlflow_platform: MlflowServer) -> MlflowServer:
    """Another account, which has the default permission alone."""
    return account(mlflow_platform, "reader")


def test_files_are_in_s3_and_records_in_postgresql(
    recorded: Recorded, mlflow_platform: MlflowServer, s3_server: S3Server, postgres_server: PostgresServer
) -> None:
    import psycopg2

    s3, bucket = s3_server.client(), mlflow_platform.artifacts.removeprefix("s3://")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    keys = [item["Key"] for page in pages for item in page["Contents"]]
    assert any(key.endswith(f"/{recorded.registration['parent_run_id']}/artifacts/params.json") for key in keys)
    for part in ("encoder", "segmenter"):
        model = recorded.registration[part]
        (key,) = (key for key in keys if key.endswith(f"/{model['model_id']}/artifacts/data/{part}.pt"))
        stored = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        assert hashlib.sha256(stored).hexdigest() == model["model_sha256"]

    connection = psycopg2.connect(postgres_server.uri.replace("+psycopg2", ""))
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT status FROM runs WHERE run_uuid = %s", [recorded.registration["parent_run_id"]])
            assert cursor.fetchall() == [("FINISHED",)]
            cursor.execute("SELECT name, version FROM model_versions WHERE name LIKE 'accounts-%' ORDER BY name")
            assert cursor.fetchall() == [("accounts-encoder", 1), ("accounts-segmenter", 1)]
    finally:
        connection.close()


def test_another_account_uses_a_version(recorded: Recorded, reader: MlflowServer) -> None:
    import mlflow

    image = np.random.default_rng(0).integers(0, 256, (61, 45), dtype=np.uint8)
    with environment_of(reader), connect(reader.address):
        mask = mlflow.pyfunc.load_model("models:/accounts-segmenter@candidate").predict(image)["mask"]
    np.testing.assert_array_equal(mask, Predictor.load(recorded.root / "models/segmenter/segmenter.pt").mask(image))


def test_another_account_changes_nothing(recorded: Recorded, reader: MlflowServer, tmp_path: Path) -> None:
    import mlflow
    from requests import HTTPError

    model, run = "accounts-segmenter", recorded.registration["parent_run_id"]
    (tmp_path / "params.json").write_text("{}")
    with environment_of(reader):
        client = mlflow.MlflowClient(reader.address)
        before = client.get_registered_model(model)
        source = client.get_model_version(model, "1").source
        for forbidden in (
            lambda: client.set_registered_model_alias(model, "champion", "1"),
            lambda: client.delete_registered_model_alias(model, "champion"),
            lambda: client.create_model_version(model, source, run_id=run),
            lambda: client.set_model_version_tag(model, "1", "model_sha256", "0"),
            lambda: client.delete_registered_model(model),
            lambda: client.log_metric(run, "test/segmenter/dsc", 1.0),
        ):
            with pytest.raises(mlflow.MlflowException) as caught:
                forbidden()
            assert caught.value.get_http_status_code() == 403
        # Nor past MLflow's records, to the files that they lead to.
        with pytest.raises(HTTPError, match="403"):
            client.log_artifact(run, str(tmp_path / "params.json"))
        assert client.get_registered_model(model).aliases == before.aliases == {"candidate": "1"}


def test_what_is_somebody_else_s_is_reported(recorded: Recorded, reader: MlflowServer) -> None:
    with environment_of(reader), pytest.raises(UserError, match=r"(?s)forbids.*'reader'.*403.*belongs to the account"):
        register(params=recorded.params, root=recorded.root, data_md5=MD5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"password": "wrong-password"}, "does not know user 'author'"), ({"user": ""}, "wants a user and a password")],
)
def test_wrong_credentials_are_no_server_out_of_reach(recorded: Recorded, change: dict[str, str], reason: str) -> None:
    with environment_of(replace(recorded.author, **change)), pytest.raises(UserError, match=reason) as caught:
        register(params=recorded.params, root=recorded.root, data_md5=MD5)
    said = str(caught.value)
    assert recorded.author.address in said and "(401)" in said
    assert "MLFLOW_TRACKING_USERNAME" in said and "MLFLOW_TRACKING_PASSWORD" in said
    assert "wrong-password" not in said and recorded.author.password not in said


def test_a_user_s_name_is_taken_once(mlflow_platform: MlflowServer, reader: MlflowServer) -> None:
    with pytest.raises(UserError, match=r"'reader'.*already exists") as caught:
        mlflow_platform.create_user("reader")
    assert "scrypt" not in str(caught.value)
