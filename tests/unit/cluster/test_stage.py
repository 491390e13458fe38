"""What a stage on a Ray cluster says of its end; the integration tests train."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from amlp.cluster.stage import StageError, main


@pytest.fixture
def busy_storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 server that starts or stops."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # boto3's own pauses.
    monkeypatch.setattr(time, "sleep", lambda _: None)
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("busy_storage")
def test_storage_that_is_away_is_no_mistake_and_the_next_try_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params, why = tmp_path / "params.json", tmp_path / "why.json"
    params.write_text("{}")
    words = ["pretrain", "--params", str(params), "--shards", str(tmp_path), "--state", str(tmp_path),
             "--out", "s3://bucket/out", "--error", str(why)]  # fmt: skip
    assert main(words) == 1
    assert (found := StageError.read(str(why))) and found.kind == "passing" and "s3://bucket" in found.message
    # What it finds then is another error, and this one a mistake.
    params.unlink()
    capsys.readouterr()
    assert main(words) == 2
    assert capsys.readouterr().err == f"amlp: {params}: not found; expected the parameters as JSON.\n"
    # Which counts for all further tries.
    params.write_text("{}")
    assert main(words) == 2
