"""What the check of a storage says of a server that does not keep its promises; a real one is in the integration tests.

The client is boto3, the server one of HTTP on loopback.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from amlp.storage import StorageError, check_storage

PLACE = "s3://bucket/runs"


@dataclass
class Storage:
    """An S3 server whose every object reads as `content`, or is absent where that is None."""

    content: bytes | None = b"amlp"
    written: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    storage = Storage()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, code: int, body: bytes = b"") -> None:
            self.send_response(code)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            storage.written.append(self.path)
            self.answer(200)

        def do_GET(self) -> None:
            if "list-type=2" in self.path:
                self.answer(200, b"<ListBucketResult/>")
            elif storage.content is None:
                self.answer(404)
            else:
                self.answer(200, storage.content)

        do_HEAD = do_GET

        def do_DELETE(self) -> None:
            storage.deleted.append(self.path)
            self.answer(204)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        yield storage
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_checks_at_the_same_time_do_not_meet(storage: Storage) -> None:
    """Two containers' processes have the same id."""
    for _ in range(2):
        check_storage(PLACE)
    assert len(set(storage.written)) == 2
    assert storage.deleted == storage.written


@pytest.mark.parametrize("content", [b"other", b"", None])
def test_other_content_is_an_error_for_the_user(storage: Storage, content: bytes | None) -> None:
    storage.content = content
    with pytest.raises(StorageError, match=r"/runs/\.check-\w+: wrote b'amlp' and read (b'other'|b''|None); .*127\.0"):
        check_storage(PLACE)
    assert storage.deleted == storage.written
