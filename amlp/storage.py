"""Files and folders, local or in S3, behind one interface: each function takes a local path or `s3://bucket/prefix`.

A published folder ends with a manifest of its files' SHA-256, written last: without it a folder counts as half-written
and is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from amlp import s3
from amlp.errors import UserError
from amlp.files import atomic_dir, atomic_file, sha256
from amlp.s3 import StorageError, presigned, s3_client, split_uri

__all__ = [
    "MANIFEST", "StorageError", "absolute", "check_storage", "fetch", "is_remote", "local_copy", "lock", "output_dir",
    "pin", "presigned", "publish", "publish_once", "read", "remove", "s3_client", "split_uri", "write",
]  # fmt: skip
MANIFEST = "_manifest.json"
# What `pin` adds to a URI: the manifest's SHA-256.
_PIN = re.compile(r"#sha256=([0-9a-f]{64})$")


class _Listing(NamedTuple):
    """What is to be published: files by their names in the folder, their SHA-256, and the manifest."""

    files: dict[str, Path]
    digests: dict[str, str]
    manifest: bytes

    @classmethod
    def of(cls, folder: Path) -> _Listing:
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        files.pop(MANIFEST, None)
        digests = {name: sha256(path) for name, path in files.items()}
        entries = {name: {"sha256": digests[name], "size": path.stat().st_size} for name, path in files.items()}
        return cls(files, digests, json.dumps({"files": entries}, indent=2, sort_keys=True).encode())

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.manifest).hexdigest()


class _Storage(Protocol):
    """A file or folder of one kind of storage; the module's functions say what the methods promise.

    uri: it means the same in another process and folder.
    """

    uri: str

    def write(self, data: bytes | memoryview) -> None: ...
    def read(self) -> bytes | None: ...
    def remove(self) -> None: ...
    def check(self) -> None: ...
    def publish(self, listing: _Listing, *, anew: bool) -> None: ...
    def download(self, name: str, target: Path) -> None:
        """Copy one file of the folder."""

    def output_dir(self) -> AbstractContextManager[Path]: ...
    def pin(self) -> str: ...
    def local_copy(self) -> Path: ...
    def lock(self) -> AbstractContextManager[None]: ...


class _Local:
    def __init__(self, path: Path) -> None:
        self.path, self.uri = path, str(path.resolve())

    def write(self, data: bytes | memoryview) -> None:
        with atomic_file(self.path) as temporary:
            temporary.write_bytes(data)

    def read(self) -> bytes | None:
        return self.path.read_bytes() if self.path.is_file() else None

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def check(self) -> None:
        probe = _Local(self.path / _probe())
        try:
            probe.write(b"amlp")
            probe.path.unlink()
        except OSError as error:
            raise StorageError(f"{self.path}: can't be written: {error}") from error

    def publish(self, listing: _Listing, *, anew: bool) -> None:
        with atomic_dir(self.path) as temporary:
            for name, path in listing.files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, temporary / name)
            (temporary / MANIFEST).write_bytes(listing.manifest)

    def download(self, name: str, target: Path) -> None:
        if not (self.path / name).is_file():
            raise StorageError(f"{self.uri}/{name}: not found though {MANIFEST} names it.")
        shutil.copyfile(self.path / name, target)

    def output_dir(self) -> AbstractContextManager[Path]:
        return atomic_dir(self.path)

    def pin(self) -> str:
        return self.uri

    def local_copy(self) -> Path:
        return self.path

    @contextmanager
    def lock(self) -> Iterator[None]:
        lock = Path(f"{self.uri}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{lock}: another process runs this very training; wait for it or end it, then run again."
                ) from error
            yield
            lock.unlink(missing_ok=True)


class _S3:
    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def write(self, data: bytes | memoryview) -> None:
        s3.write(self.uri, data)

    def read(self) -> bytes | None:
        return s3.read(self.uri)

    def remove(self) -> None:
        s3.delete_folder(self.uri)

    def check(self) -> None:
        s3.check(f"{self.uri}/{_probe()}")

    def publish(self, listing: _Listing, *, anew: bool) -> None:
        if anew:
            s3.delete(f"{self.uri}/{MANIFEST}")
        for name, path in listing.files.items():
            s3.upload(path, f"{self.uri}/{name}", digest=listing.digests[name])
        s3.write(f"{self.uri}/{MANIFEST}", listing.manifest)

    def download(self, name: str, target: Path) -> None:
        s3.download(f"{self.uri}/{name}", target)

    @contextmanager
    def output_dir(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
            self.publish(_Listing.of(Path(temporary)), anew=True)

    def pin(self) -> str:
        return self.uri if _PIN.search(self.uri) else f"{self.uri}#sha256={_manifest(self.uri)[1]}"

    def local_copy(self) -> Path:
        pinned = self.pin()
        found = _PIN.search(pinned)
        assert found
        folder = _cache() / found[1]
        with folder.with_suffix(".lock").open("w") as lock:
            # The node's other workers want the same at the same moment.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                fetch(pinned, folder)
        return folder

    @contextmanager
    def lock(self) -> Iterator[None]:
        yield


def is_remote(uri: Path | str) -> bool:
    """Whether it is in S3."""
    return str(uri).startswith("s3://")


def _at(uri: Path | str) -> _Storage:
    return _S3(str(uri)) if is_remote(uri) else _Local(Path(uri))


def absolute(uri: Path | str) -> str:
    """Return the path or URI as text that means the same in another process and folder."""
    return _at(uri).uri


def write(uri: Path | str, data: bytes | memoryview) -> None:
    """Write one object or file, whole or not at all."""
    _at(uri).write(data)


def read(uri: Path | str) -> bytes | None:
    """Return one object or file, or None when there is none.

    Raises:
        StorageError: it is not what was written, or the storage fails.
    """
    return _at(uri).read()


def remove(uri: Path | str) -> None:
    """Remove a folder with all in it, if it is there.

    Raises:
        UserError: the URI is a whole bucket.
    """
    _at(uri).remove()


def check_storage(uri: Path | str) -> None:
    """Check that a folder can be written, read and cleared, before hours are spent on what is to be written there.

    Raises:
        StorageError: it can't; the message says whether credentials, bucket or network is the reason.
    """
    _at(uri).check()


def _probe() -> str:
    # Not by process id: the first process of every container is number 1.
    return f".check-{uuid.uuid4().hex}"


def publish(folder: Path, uri: Path | str, *, anew: bool = True) -> str:
    """Copy a local folder to a path or URI: the files first, the manifest last.

    What stood there counts as half-written from the first moment on; files that only the old one had stay unread.

    Args:
        anew: False where the URI is named by its content: another writer of the same must not be taken back.

    Returns:
        The manifest's SHA-256.
    """
    listing = _Listing.of(folder)
    _at(uri).publish(listing, anew=anew)
    return listing.digest


def publish_once(folder: Path, root: Path | str) -> str:
    """Publish a folder below `root` under its manifest's SHA-256, unless it stands there already; return its URI."""
    uri = f"{absolute(root)}/{_Listing.of(folder).digest}"
    if read(f"{uri}/{MANIFEST}") is None:
        publish(folder, uri, anew=False)
    return uri


def output_dir(uri: Path | str) -> AbstractContextManager[Path]:
    """Yield an empty local folder; it becomes the path or URI, whole, when the block ends well."""
    return _at(uri).output_dir()


def _manifest(uri: str) -> tuple[dict[str, dict[str, Any]], str]:
    """Return a published folder's files and the manifest's SHA-256.

    Raises:
        StorageError: there is no manifest.
        UserError: a name in it points out of the folder.
    """
    data = read(f"{uri}/{MANIFEST}")
    if data is None:
        raise StorageError(f"{uri}: no {MANIFEST}; nothing was published there, or not all of it has arrived.")
    files = json.loads(data)["files"]
    for name in files:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or not parts:
            raise UserError(f"{uri}/{MANIFEST}: refused the file name {name!r}, which points out of the folder.")
    return files, hashlib.sha256(data).hexdigest()


def fetch(uri: Path | str, folder: Path) -> None:
    """Copy a published folder to a local one, which appears whole or not at all.

    Raises:
        StorageError: there is no manifest, a file is missing, or one is not what the manifest says.
        UserError: a name in the manifest points out of the folder.
    """
    source = _at(_PIN.sub("", str(uri)))
    files, digest = _manifest(source.uri)
    pinned_to = _PIN.search(str(uri))
    if pinned_to and pinned_to[1] != digest:
        raise StorageError(f"{source.uri}: was published again since this run began; start the run anew.")
    with atomic_dir(folder) as temporary:
        for name, expected in files.items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            source.download(name, target)
            if target.stat().st_size != expected["size"] or sha256(target) != expected["sha256"]:
                raise StorageError(
                    f"{source.uri}/{name}: not the file that {MANIFEST} names (size or SHA-256 differs)."
                )


def pin(uri: Path | str) -> str:
    """Return the path or URI as it is now: in S3 with its manifest's SHA-256, so that all nodes read the same."""
    return _at(uri).pin()


def _cache() -> Path:
    """This node's folder for fetched inputs, for this user alone; AMLP_CACHE names another."""
    named = os.environ.get("AMLP_CACHE")
    folder = Path(named) if named else Path(tempfile.gettempdir(), f"amlp-cache-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to another user; set AMLP_CACHE to a folder of your own.")
    return folder


def local_copy(uri: Path | str) -> Path:
    """Return a local folder with the same content: the folder itself when it is local, else fetched once per node.

    The copy is named by the manifest's SHA-256, so it can't go stale; it stays until the cluster's disk is deleted.
    """
    return _at(uri).local_copy()


def lock(uri: Path | str) -> AbstractContextManager[None]:
    """Hold a training's state for this process; in S3 nothing is held.

    A lease in S3 would outlive the node that was killed and keep its successor waiting. Two drivers at once do no harm
    but waste: the same training writes the same checkpoints, each whole, and a RayJob's name is taken once.

    Raises:
        UserError: another process holds it, such as one whose parent was killed.
    """
    return _at(uri).lock()
