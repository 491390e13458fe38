"""An HTTP server that answers like the Kubernetes API for RayJobs and pod logs, by a script.

The real client talks to it. What it answers follows the CRD's status fields and the API's own error objects.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_RAYJOBS = re.compile(r"/apis/ray\.io/v1/namespaces/(?P<namespace>[^/]+)/rayjobs(?:/(?P<name>[^/?]+))?$")
_POD = re.compile(r"/api/v1/namespaces/[^/]+/pods/(?P<pod>[^/]+)$")
_EVENTS = re.compile(r"/api/v1/namespaces/[^/]+/events$")
_LOG = re.compile(r"/api/v1/namespaces/[^/]+/pods/(?P<pod>[^/]+)/log$")
_REASONS = {400: "BadRequest", 403: "Forbidden", 404: "NotFound", 409: "AlreadyExists", 422: "Invalid"}

# A status, an HTTP error code, "drop": the connection ends without an answer, or "hang": it stays open without one.
Answer = dict[str, Any] | int | str


@dataclass
class KubeApi:
    """The script and what was asked.

    `statuses` are given to one GET after the other, the last one to all that follow. `creations` and `deletions` are
    error codes for the first calls of that kind. A RayJob that is deleted is gone.
    """

    statuses: list[Answer] = field(default_factory=list)
    creations: list[int | str] = field(default_factory=list)
    deletions: list[int | str] = field(default_factory=list)
    # A log that hangs begins, and no more of it comes.
    logs: dict[str, str | int] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    # By name; an HTTP error code in the place of one.
    pods: dict[str, dict[str, Any] | int] = field(default_factory=dict)
    events: list[dict[str, Any]] | int = 403
    # Called before each GET of a RayJob.
    before_get: Any = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    host: str = ""
    # Ends what hangs.
    over: threading.Event = field(default_factory=threading.Event)

    # How often a RayJob was asked for.
    polls: int = 0

    def verbs(self, verb: str) -> int:
        return sum(1 for done, _ in self.requests if done == verb)

    @property
    def deleted(self) -> bool:
        """Whether a DELETE arrived, and no RayJob is left."""
        return self.verbs("DELETE") > 0 and not self.jobs


def _handler(api: KubeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Or each answer waits 40 ms for the acknowledgement of its headers.
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, code: int, body: bytes, kind: str = "application/json") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def give(self, value: dict[str, Any]) -> None:
            self.answer(200, json.dumps(value).encode())

        def refuse(self, code: int | str) -> None:
            if code == "hang":
                api.over.wait()
            if code in ("drop", "hang"):
                self.close_connection = True
                return
            message = ""
            if code == "quota":
                code, message = (
                    403,
                    'rayjobs.ray.io "x" is forbidden: exceeded quota: amlp, requested: count=1, used: 3',
                )
            assert isinstance(code, int)
            reason = _REASONS.get(code, "InternalError")
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason}
            self.answer(code, json.dumps(status | {"message": message or f"the API says {reason}"}).encode())

        def handle_one(self, verb: str) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            path = self.path.partition("?")[0]
            api.requests.append((verb, self.path))
            if log := _LOG.match(path):
                text = api.logs.get(log["pod"], 404)
                if text == "hang":
                    self.send_response(200)
                    self.send_header("Content-Length", "100")
                    self.end_headers()
                    self.wfile.write(b"2026-01-01T00:00:01.000000000Z")
                    self.refuse(text)
                elif isinstance(text, int):
                    self.refuse(text)
                else:
                    self.answer(200, text.encode(), "text/plain")
                return
            if pod := _POD.match(path):
                one = api.pods.get(pod["pod"], 404)
                self.refuse(one) if isinstance(one, int) else self.give(one)
                return
            if _EVENTS.match(path):
                self.refuse(api.events) if isinstance(api.events, int) else self.give({"items": api.events})
                return
            found = _RAYJOBS.match(path)
            assert found, self.path
            if found["name"] is None and verb == "GET":
                self.give({"items": list(api.jobs.values())})
                return
            getattr(self, f"rayjob_{verb.lower()}")(found["name"], body)

        def rayjob_post(self, _: str, body: dict[str, Any]) -> None:
            if api.creations:
                code = api.creations.pop(0)
                if code == "created, then drop":
                    api.jobs[body["metadata"]["name"]] = body
                    code = "drop"
                self.refuse(code)
            elif body["metadata"]["name"] in api.jobs:
                self.refuse(409)
            else:
                api.jobs[body["metadata"]["name"]] = body
                api.created.append(body)
                self.answer(201, json.dumps(body).encode())

        def rayjob_get(self, name: str, _: dict[str, Any]) -> None:
            api.polls += 1
            if api.before_get:
                api.before_get()
            answer = api.statuses[0] if len(api.statuses) == 1 else api.statuses.pop(0) if api.statuses else {}
            if not isinstance(answer, dict):
                self.refuse(answer)
            elif name not in api.jobs:
                self.refuse(404)
            else:
                self.give(api.jobs[name] | {"status": answer})

        def rayjob_delete(self, name: str, body: dict[str, Any]) -> None:
            wanted = (body.get("preconditions") or {}).get("uid")
            if api.deletions:
                self.refuse(api.deletions.pop(0))
            elif wanted and name in api.jobs and api.jobs[name]["metadata"].get("uid") != wanted:
                self.refuse(409)
            elif api.jobs.pop(name, None) is None:
                self.refuse(404)
            else:
                self.give({"kind": "Status", "status": "Success"})

        def do_GET(self) -> None:
            self.handle_one("GET")

        def do_POST(self) -> None:
            self.handle_one("POST")

        def do_DELETE(self) -> None:
            self.handle_one("DELETE")

    return Handler


@contextmanager
def kube_api() -> Iterator[KubeApi]:
    """Serve the script on loopback."""
    api = KubeApi()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(api))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    api.host = f"http://127.0.0.1:{server.server_port}"
    try:
        yield api
    finally:
        api.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
