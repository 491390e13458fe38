"""Files and folders in S3: the one place that makes a client, and the few verbs that the rest needs.

A *place* is a local path or `s3://bucket/prefix`, and every verb takes both. A published folder ends with a manifest of
its files' SHA-256, written last: without it a folder counts as half-written and is refused.

Endpoint, region and credentials come from the environment or the pod, as boto3 finds them: for another server than AWS
set AWS_ENDPOINT_URL_S3 (or AWS_ENDPOINT_URL), AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from amlp.errors import UserError
from amlp.files import atomic_dir, atomic_file, sha256

MANIFEST = "_manifest.json"
# What `pin` adds to an address: the manifest's SHA-256.
_PIN = re.compile(r"#sha256=([0-9a-f]{64})$")

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
    # Making one takes half a second, and a training saves its state after every epoch or few.
    import boto3
    from botocore.config import Config

    values = dict(settings)
    address = _endpoint(values)
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 5},
        # Newer checksums travel in trailers that other servers than AWS do not all read. `write` and `publish` bring
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


def is_remote(place: Path | str) -> bool:
    return str(place).startswith("s3://")


def absolute(place: Path | str) -> str:
    """Return the place as text that means the same in another process and folder."""
    return str(place).rstrip("/") if is_remote(place) else str(Path(place).resolve())


def split_uri(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/prefix` into bucket and prefix, which may be empty.

    Raises:
        UserError: it is no such address.
    """
    found = re.fullmatch(r"s3://([^/]+)(?:/(.*))?", uri)
    if not found:
        raise UserError(f"{uri}: not an address of the form s3://bucket/prefix.")
    return found[1], (found[2] or "").strip("/")


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """Turn what boto3 raises into one line that says what is wrong with which place.

    Raises:
        StorageError: in the place of any error of boto3.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
    from botocore.exceptions import ConnectionError as NotConnectedError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        raise StorageError(f"{place}: {_MEANING.get(code, error)} ({code}).") from error
    except NoCredentialsError as error:
        raise StorageError(
            f"{place}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod an identity."
        ) from error
    except (HTTPClientError, NotConnectedError) as error:
        raise StorageError(
            f"{place}: no route to {endpoint() or 'AWS'}; check AWS_ENDPOINT_URL_S3, network policies, proxies: {error}"
        ) from error
    except (BotoCoreError, Boto3Error) as error:
        raise StorageError(f"{place}: {error}") from error


def _absent(error: StorageError) -> bool:
    """Whether the object is not there, rather than the bucket or the way to it."""
    response = getattr(error.__cause__, "response", {})
    return response.get("Error", {}).get("Code") in ("404", "NoSuchKey")


def write(place: Path | str, data: bytes | memoryview) -> None:
    """Write one object or file, whole or not at all."""
    if not is_remote(place):
        with atomic_file(Path(place)) as temporary:
            temporary.write_bytes(data)
        return
    bucket, key = split_uri(str(place))
    extra = {"Metadata": {"sha256": hashlib.sha256(data).hexdigest()}}
    with _explained(str(place)):
        # In parts when it is large; they become an object only when all have arrived.
        s3_client().upload_fileobj(io.BytesIO(data), bucket, key, ExtraArgs=extra)


def read(place: Path | str) -> bytes | None:
    """Return one object or file, or None when there is none.

    Raises:
        StorageError: it is not what was written, or the storage fails.
    """
    if not is_remote(place):
        path = Path(place)
        return path.read_bytes() if path.is_file() else None
    bucket, key = split_uri(str(place))
    client, buffer = s3_client(), io.BytesIO()
    try:
        with _explained(str(place)):
            expected = client.head_object(Bucket=bucket, Key=key)["Metadata"].get("sha256")
            # Unlike get_object it asks again for a body that broke off.
            client.download_fileobj(bucket, key, buffer)
    except StorageError as error:
        if _absent(error):
            return None
        raise
    data = buffer.getvalue()
    # Another write between the two requests looks like damage; a state has one writer.
    if expected and hashlib.sha256(data).hexdigest() != expected:
        raise StorageError(f"{place}: not the bytes that were written (SHA-256 differs).")
    return data


def remove(place: Path | str) -> None:
    """Remove a folder with all in it, if it is there.

    Raises:
        UserError: the place is a whole bucket.
    """
    if not is_remote(place):
        shutil.rmtree(place, ignore_errors=True)
        return
    bucket, prefix = split_uri(str(place))
    if not prefix:
        raise UserError(f"{place}: refused to empty a whole bucket.")
    client = s3_client()
    with _explained(str(place)):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            # One by one: some servers want a checksum for DeleteObjects that others do not know.
            for entry in page.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=entry["Key"])


def presigned(place: str, *, seconds: int, content_type: str = "") -> str:
    """Return a link that reads one object without credentials for `seconds`, 7 days at most.

    Args:
        content_type: what the server shall say that it is, such as text/html; empty leaves that to the server.
    """
    bucket, key = split_uri(place)
    params = {"Bucket": bucket, "Key": key} | ({"ResponseContentType": content_type} if content_type else {})
    with _explained(place):
        return str(s3_client().generate_presigned_url("get_object", Params=params, ExpiresIn=seconds))


def check_storage(place: Path | str) -> None:
    """Check that the place can be written, read and cleared, before hours are spent on what is to be written there.

    Raises:
        StorageError: it can't; the message tells credentials, bucket and network apart.
    """
    # Not by process id: the first process of every container is number 1.
    probe = f"{absolute(place)}/.check-{uuid.uuid4().hex}"
    if not is_remote(place):
        try:
            write(probe, b"amlp")
            Path(probe).unlink()
        except OSError as error:
            raise StorageError(f"{place}: can't be written: {error}") from error
        return
    bucket, key = split_uri(probe)
    # Some servers create a bucket that is written to: a mistyped name would pass.
    client = s3_client()
    with _explained(f"s3://{bucket}"):
        client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    write(probe, b"amlp")
    found = read(probe)
    with _explained(probe):
        client.delete_object(Bucket=bucket, Key=key)
    if found != b"amlp":
        raise StorageError(
            f"{probe}: wrote b'amlp' and read {found!r}; the storage must give what was written last, "
            f"check {endpoint() or 'AWS'} and what lies between."
        )


def _describe(folder: Path) -> tuple[dict[str, Path], dict[str, dict[str, Any]], bytes]:
    """Return a folder's files by name, what the manifest says of each, and the manifest."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files.pop(MANIFEST, None)
    entries = {name: {"sha256": sha256(path), "size": path.stat().st_size} for name, path in files.items()}
    return files, entries, json.dumps({"files": entries}, indent=2, sort_keys=True).encode()


def publish(folder: Path, place: Path | str, *, anew: bool = True) -> str:
    """Copy a folder to a place: the files first, the manifest last.

    What stood there counts as half-written from the first moment on; files that only the old one had stay unread.

    Args:
        anew: False where the place is named by its content: another writer of the same must not be taken back.

    Returns:
        The manifest's SHA-256.
    """
    files, entries, manifest = _describe(folder)
    if not is_remote(place):
        with atomic_dir(Path(place)) as temporary:
            for name, path in files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, temporary / name)
            (temporary / MANIFEST).write_bytes(manifest)
        return hashlib.sha256(manifest).hexdigest()
    uri = absolute(place)
    bucket, prefix = split_uri(uri)
    client = s3_client()
    with _explained(uri):
        if anew:
            client.delete_object(Bucket=bucket, Key=f"{prefix}/{MANIFEST}".lstrip("/"))
        for name, path in files.items():
            extra = {"Metadata": {"sha256": entries[name]["sha256"]}}
            client.upload_file(str(path), bucket, f"{prefix}/{name}".lstrip("/"), ExtraArgs=extra)
    write(f"{uri}/{MANIFEST}", manifest)
    return hashlib.sha256(manifest).hexdigest()


def publish_once(folder: Path, root: Path | str) -> str:
    """Publish a folder below `root` under its manifest's SHA-256, unless it stands there already; return the place."""
    digest = hashlib.sha256(_describe(folder)[2]).hexdigest()
    place = f"{absolute(root)}/{digest}"
    if read(f"{place}/{MANIFEST}") is None:
        publish(folder, place, anew=False)
    return place


@contextmanager
def output_dir(place: Path | str) -> Iterator[Path]:
    """Yield an empty local folder; it becomes the place, whole, when the block ends well."""
    if not is_remote(place):
        with atomic_dir(Path(place)) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
        publish(Path(temporary), place)


def _manifest(place: str) -> tuple[dict[str, dict[str, Any]], str]:
    """Return a published folder's files and the manifest's SHA-256.

    Raises:
        StorageError: there is no manifest.
        UserError: a name in it points out of the folder.
    """
    data = read(f"{place}/{MANIFEST}")
    if data is None:
        raise StorageError(f"{place}: no {MANIFEST}; nothing was published there, or not all of it has arrived.")
    files = json.loads(data)["files"]
    for name in files:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or not parts:
            raise UserError(f"{place}/{MANIFEST}: refused the file name {name!r}, which points out of the folder.")
    return files, hashlib.sha256(data).hexdigest()


def fetch(place: Path | str, folder: Path) -> None:
    """Copy a published folder to a local one, which appears whole or not at all.

    Raises:
        StorageError: there is no manifest, a file is missing, or one is not what the manifest says.
        UserError: a name in the manifest points out of the folder.
    """
    source = _PIN.sub("", absolute(place))
    files, digest = _manifest(source)
    pinned_to = _PIN.search(str(place))
    if pinned_to and pinned_to[1] != digest:
        raise StorageError(f"{source}: was published again since this run began; start the run anew.")
    client = s3_client() if is_remote(source) else None
    with atomic_dir(folder) as temporary:
        for name, expected in files.items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if client:
                bucket, prefix = split_uri(source)
                with _explained(f"{source}/{name}"):
                    client.download_file(bucket, f"{prefix}/{name}".lstrip("/"), str(target))
            elif Path(source, name).is_file():
                shutil.copyfile(Path(source, name), target)
            else:
                raise StorageError(f"{source}/{name}: not found though {MANIFEST} names it.")
            if target.stat().st_size != expected["size"] or sha256(target) != expected["sha256"]:
                raise StorageError(f"{source}/{name}: not the file that {MANIFEST} names (size or SHA-256 differs).")


def pin(place: Path | str) -> str:
    """Return the place as it is now: an address in S3 gets its manifest's SHA-256, so that all nodes read the same."""
    text = absolute(place)
    if not is_remote(text) or _PIN.search(text):
        return text
    return f"{text}#sha256={_manifest(text)[1]}"


def _cache() -> Path:
    """This node's folder for fetched inputs, for this user alone; AMLP_CACHE names another."""
    named = os.environ.get("AMLP_CACHE")
    folder = Path(named) if named else Path(tempfile.gettempdir(), f"amlp-cache-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to another user; set AMLP_CACHE to a folder of your own.")
    return folder


def local_copy(place: Path | str) -> Path:
    """Return a local folder with what the place holds: itself when it is local, else fetched once per node.

    The copy is named by the manifest's SHA-256, so it can't go stale; it stays, for a cluster's disk goes with it.
    """
    if not is_remote(place):
        return Path(place)
    pinned = pin(place)
    found = _PIN.search(pinned)
    assert found
    folder = _cache() / found[1]
    with folder.with_suffix(".lock").open("w") as lock:
        # The node's other workers want the same at the same moment.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            fetch(pinned, folder)
    return folder
