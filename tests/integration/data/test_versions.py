"""Versions of the source images, from a real DVC repository with its remote on a real S3 server and in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import pytest

from amlp.data.versions import DataVersion, fetch_version, resolve_version
from amlp.errors import UserError
from amlp.registry.lineage import folder_md5
from amlp.storage import remove, write
from devtools.local import DataRepository

FILES = {"benign/a.png": b"first", "benign/\u00e9 b.png": b"second", "malignant/c.png": b""}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture(params=["s3", "folder"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> DataRepository:
    if request.param == "folder":
        remote, environment = str(tmp_path / "a remote"), {}
    else:
        remote = f"{request.getfixturevalue('bucket')}/dvc"
        environment = request.getfixturevalue("s3_server").environment
    # A blank, as a folder's name may have one.
    made = DataRepository.create(tmp_path / "a repository", remote, environment)
    write_files(made.folder / "data" / "images", FILES)
    return made


def resolve(repository: DataRepository, rev: str, path: str = "data/images") -> DataVersion:
    return resolve_version(repo=str(repository.folder), rev=rev, path=path)


def test_each_version_is_found_and_fetched_as_it_was(repository: DataRepository, tmp_path: Path) -> None:
    images = repository.folder / "data" / "images"
    old = repository.commit("data/images")
    before = folder_md5(images)
    (images / "benign" / "a.png").write_bytes(b"First")
    new = repository.commit("data/images")

    versions = {rev: resolve(repository, rev) for rev in (old, new, "main")}
    assert versions[old].commit == old and versions[old].md5 == before
    assert versions[new] == versions["main"] and versions[new].md5 == folder_md5(images) != before

    for rev, changed in ((old, {}), (new, {"benign/a.png": b"First"})):
        folder = tmp_path / rev
        fetch_version(versions[rev].uri, versions[rev].md5, folder)
        found = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.png")}
        assert found == FILES | changed
        assert folder_md5(folder) == versions[rev].md5


def test_what_cannot_be_fetched_is_reported_and_nothing_is_left(repository: DataRepository, tmp_path: Path) -> None:
    version = resolve(repository, repository.commit("data/images", push=False))
    folder = tmp_path / "fetched"
    with pytest.raises(UserError, match=r"not found.*dvc push"):
        fetch_version(version.uri, version.md5, folder)
    repository.dvc("push", "--quiet")

    root = unquote(version.uri.rsplit("/", 2)[0].removeprefix("file://"))
    victim = next(entry for entry in json.loads(_read(repository, version)) if entry["relpath"] == "benign/a.png")
    write(f"{root}/{victim['md5'][:2]}/{victim['md5'][2:]}", b"other bytes")
    with pytest.raises(UserError, match=r"damaged, benign/a\.png"):
        fetch_version(version.uri, version.md5, folder)
    remove(root)
    with pytest.raises(UserError, match="not found"):
        fetch_version(version.uri, version.md5, folder)
    assert not folder.exists()


def _read(repository: DataRepository, version: DataVersion) -> bytes:
    name = version.md5
    return (repository.folder / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:]).read_bytes()


def test_a_name_that_points_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    import hashlib

    listing = json.dumps([{"md5": "0" * 32, "relpath": "../outside.png"}]).encode()
    md5 = hashlib.md5(listing).hexdigest()
    place = tmp_path / "files" / "md5" / md5[:2] / f"{md5[2:]}.dir"
    write(place, listing)
    with pytest.raises(UserError, match=r"'\.\./outside\.png', which points out"):
        fetch_version(place.as_uri(), f"{md5}.dir", tmp_path / "fetched")


def test_a_wrong_question_is_answered_clearly(tmp_path: Path) -> None:
    repository = DataRepository.create(tmp_path / "repository", str(tmp_path / "remote"), {})
    write_files(repository.folder / "data" / "images", FILES)
    repository.commit("data/images")
    for path, rev, message in (
        ("data/none", "main", "does not track 'data/none'"),
        ("data/images/benign/a.png", "main", "single file"),
        ("data/images", "no-such-branch", "no-such-branch"),
    ):
        with pytest.raises(UserError, match=message):
            resolve(repository, rev, path)
    with pytest.raises(UserError, match="no-such-repository"):
        resolve_version(repo=str(tmp_path / "no-such-repository"), rev="main", path="data")


def test_a_token_in_the_address_is_not_repeated() -> None:
    with pytest.raises(UserError) as caught:
        resolve_version(repo="https://user:s3cret@127.0.0.1:9/repository.git", rev="main", path="images")
    said = str(caught.value)
    assert "s3cret" not in said and "127.0.0.1:9/repository.git" in said
    # Why, and not only that it failed.
    assert "refused" in said.lower() or "connect" in said.lower()
