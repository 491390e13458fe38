"""Storage against a real S3 server and against local folders: the same verbs, the same promises."""

from __future__ import annotations

import json
import threading
import urllib.request
from pathlib import Path

import pytest

from amlp import storage
from amlp.errors import UserError
from amlp.storage import MANIFEST, StorageError
from devtools.servers import free_ports


@pytest.fixture(params=["s3", "local"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "places" / "a")
    return f"{request.getfixturevalue('bucket')}/runs/a"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "pictures").mkdir(parents=True)
    (folder / "index.bin").write_bytes(b"\0" * 100)
    (folder / "empty").write_bytes(b"")
    # Larger than what goes in one part.
    (folder / "pictures" / "large file.npy").write_bytes(bytes(range(256)) * 4 * 10_000)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_what_is_published_is_fetched(place: str, folder: Path, tmp_path: Path) -> None:
    storage.publish(folder, place)
    storage.fetch(place, tmp_path / "fetched")
    assert contents(tmp_path / "fetched") == contents(folder)


def test_an_object_is_read_as_written_and_absent_is_none(place: str) -> None:
    assert storage.read(f"{place}/x") is None
    for data in (b"first", b"", b"second" * 2_000_000):
        storage.write(f"{place}/x", data)
        assert storage.read(f"{place}/x") == data


def test_a_reader_beside_a_writer_gets_one_version_or_the_other(place: str) -> None:
    versions = [letter * 50_000 for letter in (b"a", b"b")]
    storage.write(f"{place}/x", versions[0])
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            for version in versions:
                storage.write(f"{place}/x", version)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {storage.read(f"{place}/x") for _ in range(200)} <= set(versions)
    finally:
        ended.set()
        writer.join()


def test_a_damaged_object_is_refused(bucket: str) -> None:
    from amlp.s3 import s3_client, split_uri

    name, key = split_uri(f"{bucket}/x")
    s3_client().put_object(Bucket=name, Key=key, Body=b"other bytes", Metadata={"sha256": "0" * 64})
    with pytest.raises(StorageError, match="not the bytes that were written"):
        storage.read(f"{bucket}/x")


def test_the_same_folder_is_published_once(place: str, folder: Path, tmp_path: Path) -> None:
    first = storage.publish_once(folder, place)
    # What is there is not written again.
    storage.write(f"{first}/index.bin", b"changed by hand")
    assert storage.publish_once(folder, place) == first
    assert storage.read(f"{first}/index.bin") == b"changed by hand"
    (folder / "index.bin").write_bytes(b"other")
    second = storage.publish_once(folder, place)
    assert second != first
    storage.fetch(second, tmp_path / "fetched")
    assert contents(tmp_path / "fetched") == contents(folder)


def test_a_folder_without_its_manifest_is_refused(place: str, folder: Path, tmp_path: Path) -> None:
    storage.write(f"{place}/index.bin", b"only a part has arrived")
    with pytest.raises(StorageError, match="nothing was published there, or not all of it"):
        storage.fetch(place, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_a_file_that_is_not_what_the_manifest_names_leaves_nothing(place: str, folder: Path, tmp_path: Path) -> None:
    storage.publish(folder, place)
    storage.write(f"{place}/index.bin", b"\1" * 100)
    with pytest.raises(StorageError, match=r"index\.bin: not the file"):
        storage.fetch(place, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil"])
def test_names_that_point_out_of_the_folder_are_refused(place: str, name: str, tmp_path: Path) -> None:
    manifest = {"files": {name: {"sha256": "0" * 64, "size": 0}}}
    storage.write(f"{place}/{MANIFEST}", json.dumps(manifest).encode())
    with pytest.raises(UserError, match="points out of the folder"):
        storage.fetch(place, tmp_path / "fetched")


def test_remove_takes_the_folder_and_not_its_neighbour(place: str) -> None:
    storage.write(f"{place}/x", b"x")
    storage.write(f"{place}-other/x", b"stays")
    storage.remove(place)
    assert storage.read(f"{place}/x") is None
    assert storage.read(f"{place}-other/x") == b"stays"


def test_check_passes_and_leaves_nothing(place: str) -> None:
    storage.check_storage(place)
    if storage.is_remote(place):
        bucket, prefix = storage.split_uri(place)
        assert "Contents" not in storage.s3_client().list_objects_v2(Bucket=bucket, Prefix=prefix)
    else:
        assert not list(Path(place).iterdir())


def test_nodes_share_one_copy_and_a_pin_refuses_other_data(bucket: str, folder: Path, tmp_path: Path) -> None:
    uri = f"{bucket}/shards"
    storage.publish(folder, uri)
    pinned = storage.pin(uri)
    copies: list[Path] = []
    threads = [threading.Thread(target=lambda: copies.append(storage.local_copy(pinned))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(copies) == 4 and len(set(copies)) == 1
    assert contents(copies[0]) == contents(folder)

    (folder / "index.bin").write_bytes(b"new data")
    storage.publish(folder, uri)
    assert storage.local_copy(pinned) == copies[0], "a node that has the old data goes on with them"
    assert contents(storage.local_copy(uri))["index.bin"] == b"new data"
    with pytest.raises(StorageError, match="published again since this run began"):
        storage.fetch(pinned, tmp_path / "another-node")


def test_a_local_place_needs_no_copy(folder: Path) -> None:
    assert storage.local_copy(storage.pin(folder)) == folder.resolve()


def test_output_dir_publishes_only_what_ends_well(place: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half-way"), storage.output_dir(place) as folder:
        (folder / "x").write_text("half")
        raise RuntimeError("half-way")
    assert storage.read(f"{place}/x") is None
    with storage.output_dir(place) as folder:
        (folder / "x").write_text("whole")
    assert storage.read(f"{place}/x") == b"whole"


def test_a_presigned_link_needs_no_credentials(bucket: str) -> None:
    storage.write(f"{bucket}/report.html", b"<p>")
    with urllib.request.urlopen(storage.presigned(f"{bucket}/report.html", seconds=60), timeout=10) as response:
        assert response.read() == b"<p>"


def test_the_start_up_check_tells_what_is_wrong(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="no such bucket"):
        storage.check_storage("s3://no-such-bucket-here/x")
    with monkeypatch.context() as changed, pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY"):
        changed.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        storage.check_storage(f"{bucket}/x")
    with monkeypatch.context() as changed, pytest.raises(StorageError, match="does not know this access key"):
        changed.setenv("AWS_ACCESS_KEY_ID", "wrong")
        storage.check_storage(f"{bucket}/x")
    with monkeypatch.context() as changed, pytest.raises(StorageError, match=r"no route to http://127\.0\.0\.1"):
        changed.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_ports(1)[0]}")
        storage.check_storage(f"{bucket}/x")
    with monkeypatch.context() as changed, pytest.raises(StorageError, match="no credentials"):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            changed.delenv(name)
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            changed.setenv(name, "/nonexistent")
        storage.check_storage(f"{bucket}/x")


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(UserError, match="s3://bucket/prefix"):
        storage.split_uri("s3:/bucket/x")
    with pytest.raises(UserError, match="whole bucket"):
        storage.remove("s3://bucket")
