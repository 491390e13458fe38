"""A version of the source images: what a DVC repository says of a folder at a revision, and the folder's files.

DVC's remote holds each file under its MD5, and a folder as a JSON list of its files' MD5s and paths. So an address and
an MD5 are all that has to travel between tasks; who needs the files fetches them, and checks each.
"""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from amlp.errors import UserError, without_credentials
from amlp.files import atomic_dir
from amlp.progress import progress
from amlp.storage import StorageError, read

_FOLDER_MD5 = re.compile(r"[0-9a-f]{32}\.dir")
# Requests under way at a time: a small file's time is the way there and back.
_THREADS = 16


@dataclass(frozen=True)
class DataVersion:
    """A folder of images as a DVC repository holds it.

    Args:
        uri: of the folder's list in DVC's remote: s3://bucket/prefix/files/md5/ab/cd...dir, or file:///...
        md5: DVC's, as in its .dir files.
        commit: of the repository.
    """

    uri: str
    md5: str
    commit: str


def resolve_version(*, repo: str, rev: str, path: str) -> DataVersion:
    """Ask a DVC repository where the default remote holds a folder at a revision.

    A repository on this machine that names no remote has its cache for one.

    Args:
        repo: git address or folder.
        rev: commit, branch or tag.
        path: of the folder, from the repository's root.

    Raises:
        UserError: no such repository, revision, or folder under DVC; or no remote that other machines can read.
    """
    from dvc.config import NoRemoteError
    from dvc.exceptions import DvcException, OutputNotFoundError
    from dvc.repo import Repo
    from dvc_data.index import StorageKeyError
    from scmrepo.exceptions import SCMError

    shown = without_credentials(repo)
    try:
        with Repo.open(repo, rev=rev, subrepos=True, uninitialized=True) as opened:
            index, entry = opened.get_data_index_entry(path)
            remote, file = index.storage_map.get_remote(entry)
            uri = Path(file).as_uri() if remote.protocol == "local" else remote.unstrip_protocol(file)
            md5, commit = entry.hash_info.value, opened.get_rev()
    except OutputNotFoundError as error:
        raise UserError(
            f"{shown} at {rev}: DVC does not track {path!r}; expected a folder that `dvc add` or a stage made."
        ) from error
    except (NoRemoteError, StorageKeyError) as error:
        raise UserError(f"{shown} at {rev}: no default remote; `dvc remote add --default NAME s3://...`.") from error
    except (DvcException, SCMError, ValueError) as error:
        # Git's own words, such as that a password is asked for, are in the last cause.
        why: BaseException = error
        while why.__cause__:
            why = why.__cause__
        words = dict.fromkeys((str(error), str(why)))
        raise UserError(f"{shown} at {rev}: {': '.join(words).replace(repo, shown)}") from error
    if not md5 or not _FOLDER_MD5.fullmatch(md5):
        raise UserError(f"{shown} at {rev}: {path!r} is a single file, expected a folder of images.")
    if urlsplit(uri).scheme not in ("s3", "file"):
        raise UserError(f"{shown} at {rev}: the default remote is {uri}, expected one in S3 or a folder.")
    return DataVersion(uri, md5, commit)


def fetch_version(uri: str, md5: str, folder: Path) -> None:
    """Copy all files of a version to `folder`, which appears whole or not at all.

    Args:
        uri: as of `DataVersion`.
        md5: as of `DataVersion`; what is fetched must have it.

    Raises:
        UserError: files are missing in the remote, damaged, or named so that they would lie outside of the folder.
    """
    if not _FOLDER_MD5.fullmatch(md5):
        raise UserError(f"data_md5: {md5!r} is not DVC's MD5 of a folder: 32 hex digits and '.dir'.")
    # .../files/md5/ab/cdef.dir
    root = uri.rsplit("/", 2)[0]
    entries = json.loads(_object(uri, md5.removesuffix(".dir")))
    for entry in entries:
        name = entry["relpath"]
        if name.startswith("/") or ".." in PurePosixPath(name).parts or "\0" in name:
            raise UserError(f"{uri}: refused the file name {name!r}, which points out of the folder.")

    def copy(entry: dict[str, str], target: Path) -> None:
        data = _object(f"{root}/{entry['md5'][:2]}/{entry['md5'][2:]}", entry["md5"], entry["relpath"])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    with (
        atomic_dir(folder) as temporary,
        progress(len(entries), "fetch", "files") as bar,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        # In windows, so that a failure is reported soon and what waits stays small.
        for start in range(0, len(entries), 16 * _THREADS):
            window = entries[start : start + 16 * _THREADS]
            for _ in pool.map(lambda entry: copy(entry, temporary / entry["relpath"]), window):
                bar.update(1)


def _object(uri: str, md5: str, name: str = "the list of files") -> bytes:
    """Return an object of DVC's remote and check it."""
    parts = urlsplit(uri)
    data = read(Path(unquote(parts.path)) if parts.scheme == "file" else uri)
    if data is None:
        raise StorageError(f"{uri}: not found, {name}; `dvc push` has not brought it there.")
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise StorageError(f"{uri}: damaged, {name}: its MD5 is not {md5}; push it again from an intact copy.")
    return data
