"""An HTTP server that answers like the API of Kubeflow Pipelines, by a script; kfp's own client talks to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_ROOT = "/apis/v2beta1"


@dataclass
class KubeflowApi:
    """`runs`: answers to one look at a run after the other, the last one to all that follow."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    # An HTTP status to refuse everything with.
    refuse: int = 0
    # Statuses to refuse the next looks at a run with, one after the other.
    storm: list[int] = field(default_factory=list)
    # Users have namespaces of their own.
    multi_user: bool = True
    # Whether the experiment is there already.
    experiments: bool = False
    posted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    host: str = ""

    def answer(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if method == "POST":
            # As the real one: it knows whose a run is by its experiment's namespace, or there is only its own.
            names = body.get("namespace") if path == "/experiments" else None
            if path == "/experiments" and bool(names) != self.multi_user:
                return None
            self.posted.append((path, body))
        match method, path:
            case "GET", "/healthz":
                return {"multi_user": self.multi_user}
            case "GET", "/experiments":
                known = [{"experiment_id": "e1", "display_name": "amlp"}]
                return {"experiments": known, "total_size": 1} if self.experiments else {}
            case "GET", "/runs":
                return {"runs": self.runs}
            case "POST", "/experiments":
                return {"experiment_id": "e1", "display_name": body["display_name"]}
            case "POST", "/runs":
                return {"run_id": "r1", "display_name": body["display_name"], "state": "PENDING"}
            case "POST", "/recurringruns":
                return {"recurring_run_id": "s1", "display_name": body["display_name"]}
            case "GET", "/runs/r1" | "/runs/r7":
                return self.runs[0] if len(self.runs) == 1 else self.runs.pop(0)
        return None


@contextmanager
def kubeflow_api() -> Iterator[KubeflowApi]:
    """Serve the script on loopback."""
    api = KubeflowApi()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def handle_one(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            api.tokens.add(self.headers.get("authorization") or "")
            answer, refuse = None, api.refuse
            if api.storm and "/runs/" in self.path:
                refuse = api.storm.pop(0)
            if not refuse:
                answer = api.answer(self.command, self.path.partition("?")[0].removeprefix(_ROOT), body)
            code = refuse or (404 if answer is None else 200)
            # As the real one's errors.
            error = {
                "code": 5,
                "message": "Failed to get it: ResourceNotFoundError: Run nosuch not found",
                "details": [],
            }
            data = json.dumps(answer if answer is not None else error).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = handle_one

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    api.host = f"http://127.0.0.1:{server.server_port}"
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
