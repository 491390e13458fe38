"""The one module that makes an S3 client: single objects and folders of S3, and what a server's errors mean.

Other modules use `amlp.storage`, whose functions take local paths too.

Endpoint, region and credentials come from the environment or the pod, as boto3 finds them: for another server than AWS
set AWS_ENDPOINT_URL_S3 (or AWS_ENDPOINT_URL), AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amlp.errors import UserError

# What the server's answer means, and what to do about it; by botocore's error code.
_MEANING = {
    "InvalidAccessKeyId": "the server does not know this access key; check AWS_ACCESS_KEY_ID and the endpoint",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session's credentials have expired; renew them",
    "AccessDenied": "these credentials may not do this; ask for the right, or check the bucket's name",
    "403": "access denied; check the credentials and what they may do in this bucket",
    "NoSuchBucket": "there is no such bucket; create it or check its name",
    "NoSuchKey": "there is no such object",
    "404": "there is no such bucket or object",
}


# Times that an object is asked for when its body breaks off.
_BODIES = 5


class StorageError(UserError):
    """The storage can't be reached, refuses the request, or holds something else than was written."""


def endpoint() -> str | None:
    """The S3 server's address when it is not AWS itself."""
    return _endpoint(os.environ)


def _endpoint(environment: Mapping[str, str]) -> str | None:
    return environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or None


def s3_client(environment: Mapping[str, str] | None = None) -> Any:
    """Return a boto3 client with bounded waits: 5 tries a request, 5 s to connect, 60 s without a byte.

    One client serves the process, threads included, until the settings change.

    Args:
        environment: with other settings than the process's, by the same names.
    """
    settings = os.environ if environment is None else environment
    chosen = tuple(sorted((name, value) for name, value in settings.items() if name.startswith("AWS_")))
    return _s3_client(chosen, own=environment is not None)


@functools.lru_cache(maxsize=4)
def _s3_client(settings: tuple[tuple[str, str], ...], *, own: bool) -> Any:
    # Making one takes half a second, and a training saves its state every few epochs.
    import boto3
    from botocore.config import Config

    values = dict(settings)
    address = _endpoint(values)
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 5},
        # Newer checksums travel in trailers that other servers than AWS do not all read. `write` and `upload` bring
        # their own SHA-256.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # bucket.host does not resolve on a server of one's own.
        s3={"addressing_style": "path" if address else "auto"},
        # Without a region, presigned links would be signed in a way that newer servers refuse.
        signature_version="s3v4",
    )
    keys = {
        "aws_access_key_id": values.get("AWS_ACCESS_KEY_ID"),
        "aws_secret_access_key": values.get("AWS_SECRET_ACCESS_KEY"),
        "region_name": values.get("AWS_DEFAULT_REGION"),
    }
    # A session of its own: boto3's shared one keeps the first credentials it saw.
    return boto3.session.Session(**keys if own else {}).client("s3", endpoint_url=address, config=config)


def split_uri(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/prefix` into bucket and prefix, which may be empty.

    Raises:
        UserError: it is no such URI.
    """
    found = re.fullmatch(r"s3://([^/]+)(?:/(.*))?", uri)
    if not found:
        raise UserError(f"{uri}: not a URI of the form s3://bucket/prefix.")
    return found[1], (found[2] or "").strip("/")


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn what boto3 raises into one line that says what is wrong with which URI.

    Raises:
        StorageError: instead of any error of boto3.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
    from botocore.exceptions import ConnectionError as NotConnectedError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        raise StorageError(f"{uri}: {_MEANING.get(code, error)} ({code}).") from error
    except NoCredentialsError as error:
        raise StorageError(
            f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod an identity."
        ) from error
    except (HTTPClientError, NotConnectedError) as error:
        raise StorageError(
            f"{uri}: no route to {endpoint() or 'AWS'}; check AWS_ENDPOINT_URL_S3, network policies, proxies: {error}"
        ) from error
    except (BotoCoreError, Boto3Error) as error:
        raise StorageError(f"{uri}: {error}") from error


def _absent(error: StorageError) -> bool:
    """Whether the object is not there, rather than the bucket or the way to it."""
    response = getattr(error.__cause__, "response", {})
    return response.get("Error", {}).get("Code") in ("404", "NoSuchKey")


def write(uri: str, data: bytes | memoryview) -> None:
    """Write one object, whole or not at all."""
    bucket, key = split_uri(uri)
    extra = {"Metadata": {"sha256": hashlib.sha256(data).hexdigest()}}
    with _explained(uri):
        # In parts when it is large; they become an object only when all have arrived.
        s3_client().upload_fileobj(io.BytesIO(data), bucket, key, ExtraArgs=extra)


def read(uri: str) -> bytes | None:
    """Return one object, or None when there is none.

    Raises:
        StorageError: it is not what was written, or the storage fails.
    """
    bucket, key = split_uri(uri)
    try:
        with _explained(uri):
            data, expected = _body(bucket, key)
    except StorageError as error:
        if _absent(error):
            return None
        raise
    if expected and hashlib.sha256(data).hexdigest() != expected:
        raise StorageError(f"{uri}: not the bytes that were written (SHA-256 differs).")
    return data


def _body(bucket: str, key: str) -> tuple[bytes, str | None]:
    """Return an object and its SHA-256 from one answer: between two, somebody may write another."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    for left in reversed(range(_BODIES)):
        answer = s3_client().get_object(Bucket=bucket, Key=key)
        try:
            return answer["Body"].read(), answer["Metadata"].get("sha256")
        except (HTTPClientError, IncompleteReadError):
            # boto3 asks again for an answer that fails, not for one that breaks off.
            if not left:
                raise
    raise AssertionError


def upload(file: Path, uri: str, *, digest: str) -> None:
    """Write a file as one object; `digest` is its SHA-256."""
    bucket, key = split_uri(uri)
    with _explained(uri):
        s3_client().upload_file(str(file), bucket, key, ExtraArgs={"Metadata": {"sha256": digest}})


def download(uri: str, file: Path) -> None:
    """Copy one object to a file, which may be broken off when this fails."""
    bucket, key = split_uri(uri)
    with _explained(uri):
        s3_client().download_file(bucket, key, str(file))


def delete(uri: str) -> None:
    """Delete one object, if it is there."""
    bucket, key = split_uri(uri)
    with _explained(uri):
        s3_client().delete_object(Bucket=bucket, Key=key)


def delete_folder(uri: str) -> None:
    """Delete all objects below a prefix.

    Raises:
        UserError: the URI is a whole bucket.
    """
    bucket, prefix = split_uri(uri)
    if not prefix:
        raise UserError(f"{uri}: refused to empty a whole bucket.")
    client = s3_client()
    with _explained(uri):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            # One by one: some servers want a checksum for DeleteObjects that others do not know.
            for entry in page.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=entry["Key"])


def check(probe: str) -> None:
    """Write, read and delete the object `probe`, which must be new.

    Raises:
        StorageError: one of them fails; the message says whether credentials, bucket or network is the reason.
    """
    bucket, key = split_uri(probe)
    # Some servers create a bucket that is written to: a mistyped name would pass.
    with _explained(f"s3://{bucket}"):
        s3_client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    write(probe, b"amlp")
    found = read(probe)
    delete(probe)
    if found != b"amlp":
        raise StorageError(
            f"{probe}: wrote b'amlp' and read {found!r}; the storage must give what was written last, "
            f"check {endpoint() or 'AWS'} and what lies between."
        )


def presigned(uri: str, *, seconds: int, content_type: str = "") -> str:
    """Return a link that reads one object without credentials for `seconds`, 7 days at most.

    Args:
        content_type: what the server shall say that it is, such as text/html; empty leaves that to the server.
    """
    bucket, key = split_uri(uri)
    params = {"Bucket": bucket, "Key": key} | ({"ResponseContentType": content_type} if content_type else {})
    with _explained(uri):
        return str(s3_client().generate_presigned_url("get_object", Params=params, ExpiresIn=seconds))
