from __future__ import annotations

from typing import Any

import botocore.exceptions
import pytest
import requests
import urllib3.exceptions
from kubernetes.client import ApiException
from mlflow.exceptions import MlflowException, RestException

from amlp.errors import UserError, is_transient


def s3(status: int) -> Exception:
    return botocore.exceptions.ClientError({"ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")  # type: ignore


def http(status: int) -> Exception:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(), TimeoutError(), requests.ConnectionError(), requests.Timeout(),
        urllib3.exceptions.ReadTimeoutError(None, "", ""), urllib3.exceptions.ProtocolError(),  # type: ignore[arg-type]
        botocore.exceptions.EndpointConnectionError(endpoint_url="x"),
        botocore.exceptions.ReadTimeoutError(endpoint_url="x"), s3(503), s3(429), http(502), ApiException(status=500),
        RestException({"error_code": "INTERNAL_ERROR", "message": ""}),
    ],
    ids=repr,
)  # fmt: skip
def test_a_server_that_does_not_answer_or_is_busy_may_pass(error: Exception) -> None:
    assert is_transient(error)
    assert is_transient(behind(error))


def behind(error: Exception, hidden: Any = "") -> Exception:
    """A user's error that was caused by another; the other can be hidden by `from None`."""
    try:
        try:
            raise error
        except Exception as first:
            raise UserError("x") from (None if hidden is None else first)
    except UserError as made:
        return made


@pytest.mark.parametrize(
    "error",
    [UserError("x"), ValueError(), FileNotFoundError(), MemoryError(), s3(404), s3(403), http(401), http(404),
     ApiException(status=403), MlflowException("x"),
     RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": ""})],
    ids=repr,
)  # fmt: skip
def test_other_errors_do_not(error: Exception) -> None:
    assert not is_transient(error)
    assert not is_transient(behind(error))


def test_a_cause_that_is_hidden_does_not_count() -> None:
    assert not is_transient(behind(ConnectionResetError(), hidden=None))
    assert not is_transient(None)
