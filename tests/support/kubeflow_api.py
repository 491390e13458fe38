"""An HTTP server that answers like the API of Kubeflow Pipelines, by a script; kfp's own client talks to it.

It refuses what the real one (2.17) refuses, in its words: an unknown run or experiment, an argument that is missing, a
cron that is none, a path that does not exist.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

_ROOT = "/apis/v2beta1"


@dataclass
class KubeflowApi:
    """`runs`: answers to one look at a run after the other, the last one to all that follow."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    # An HTTP status to refuse everything with.
    refuse: int = 0
    # What the next looks at a run get instead, one after the other: a status, or the text of an answer.
    storm: list[int | bytes] = field(default_factory=list)
    # Method and path -> the text of an answer in the place of the real one, and its status.
    odd: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    # Users have namespaces of their own.
    multi_user: bool = True
    # Whether the experiment is there already.
    experiments: bool = False
    posted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    # Of the request that is answered.
    query: dict[str, str] = field(default_factory=dict)
    host: str = ""

    def answer(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if method == "POST":
            # It knows whose a run is by its experiment's namespace, or there is only its own.
            if path == "/experiments" and bool(body.get("namespace")) != self.multi_user:
                raise Refused(400, 3, "Failed to create an experiment: Invalid input error: namespace")
            if path in ("/runs", "/recurringruns"):
                _check_run(body)
            if path == "/recurringruns":
                _check_cron(body)
            self.posted.append((path, body))
        match method, path:
            case "GET", "/healthz":
                return {"multi_user": self.multi_user}
            case "GET", "/experiments":
                known = [{"experiment_id": "e1", "display_name": "amlp"}]
                return {"experiments": known, "total_size": 1} if self.experiments else {}
            case "GET", "/runs":
                # One page each: a client that forgets the token sees the first only.
                page = int(self.query.get("page_token") or 0)
                more = {"next_page_token": str(page + 1)} if page + 1 < len(self.runs) else {}
                return {"runs": self.runs[page : page + 1], "total_size": len(self.runs)} | more
            case "POST", "/experiments":
                return {"experiment_id": "e1", "display_name": body["display_name"]}
            case "POST", "/runs":
                return {"run_id": "r1", "display_name": body["display_name"], "state": "PENDING"}
            case "POST", "/recurringruns":
                return {"recurring_run_id": "s1", "display_name": body["display_name"]}
            case "GET", "/runs/r1" | "/runs/r7":
                return self.runs[0] if len(self.runs) == 1 else self.runs.pop(0)
            case "GET", _ if path.startswith("/runs/"):
                name = path.removeprefix("/runs/")
                raise Refused(404, 5, f"Failed to get a run: ResourceNotFoundError: Run {name} not found")
        raise Refused(404, 5, "Not Found")


@dataclass
class Refused(Exception):
    """An answer that is an error: HTTP's status, gRPC's code, and its words."""

    status: int
    code: int
    message: str

    @property
    def body(self) -> dict[str, Any]:
        detail = {"@type": "type.googleapis.com/google.rpc.Status", "code": self.code, "message": self.message}
        return {"code": self.code, "message": self.message, "details": [detail]}


def _check_run(body: dict[str, Any]) -> None:
    if body.get("experiment_id") != "e1":
        raise Refused(404, 5, f"ResourceNotFoundError: Experiment {body.get('experiment_id')} not found")
    spec = body["pipeline_spec"].get("pipeline_spec") or body["pipeline_spec"]
    if "root" not in spec:
        raise Refused(500, 13, "InvalidInputError: unknown template format: pipeline spec is invalid")
    wanted = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    given = body.get("runtime_config", {}).get("parameters", {})
    for name, parameter in wanted.items():
        if name not in given and "defaultValue" not in parameter and not parameter.get("isOptional"):
            text = f"parameter {name} is not optional, yet has neither default value nor user provided value"
            raise Refused(400, 3, f"Failed to create a new run: Invalid input error: {text}")
    if unknown := sorted(given.keys() - wanted.keys()):
        raise Refused(
            400, 3, f"Failed to create a new run: Invalid input error: parameter {unknown[0]} is not expected"
        )


def _check_cron(body: dict[str, Any]) -> None:
    cron = body["trigger"]["cron_schedule"]["cron"]
    if not 5 <= len(cron.split()) <= 6:
        text = f"Expected 5 to 6 fields, found {len(cron.split())}: {cron}"
        raise Refused(400, 3, f"Failed to create a recurring run due to conversion error: Invalid input error: {text}")


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
            path, _, query = self.path.partition("?")
            api.query = dict(parse_qsl(query))
            path, refuse = path.removeprefix(_ROOT), api.refuse
            odd = api.odd.get(f"{self.command} {path}")
            if api.storm and path.startswith("/runs/"):
                match api.storm.pop(0):
                    case bytes(text):
                        odd = 200, text
                    case refuse:
                        pass
            try:
                if refuse:
                    raise Refused(refuse, 14, "upstream connect error")
                code, data = odd or (200, json.dumps(api.answer(self.command, path, body)).encode())
            except Refused as error:
                code, data = error.status, json.dumps(error.body).encode()
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
