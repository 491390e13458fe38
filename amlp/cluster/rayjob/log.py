"""What the job says: the log of a container of its head pod, and Kubernetes' warnings about its pods."""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from amlp.cluster.rayjob.request import JobRequest

# Lines of the log that an error repeats.
TAIL = 30
# What Kubernetes puts before each line of a log.
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")

logger = logging.getLogger(__name__)


class JobLog:
    """Repeats the job's log line by line, each line once.

    Args:
        core: a `kubernetes.client.CoreV1Api`.
        request: the job.
        container: of the head pod, that prints the log.
        now: the time in seconds.
    """

    def __init__(self, core: Any, request: JobRequest, *, container: str, now: Callable[[], float]) -> None:
        self._core, self._request, self._container, self._now = core, request, container, now
        self._tail: deque[str] = deque(maxlen=TAIL)
        self._head = ""
        self._last_line = ""
        self._last_read: float | None = None
        self._refused = False

    def tail(self) -> str:
        """Return the last lines, each indented, under a heading; empty where there are none."""
        lines = "".join(f"\n  | {line}" for line in self._tail)
        return f"\nlast lines of its log:{lines}" if lines else ""

    def follow(self, status: Mapping[str, Any]) -> bool:
        """Repeat what is new, and return whether the head pod is there.

        A log that can't be read must not end a job that runs.

        Args:
            status: of the RayJob; it names the head pod.
        """
        head = ((status.get("rayClusterStatus") or {}).get("head") or {}).get("podName") or ""
        if not head:
            # Before the cluster is up; afterwards KubeRay has lost it.
            return not self._head
        if head != self._head:
            # A retry's new cluster has a log of its own.
            self._head, self._last_line, self._last_read = head, "", None
        read, there = self._read()
        # A progress bar overwrites its line by carriage returns, at which `splitlines` would split too.
        for line in read.split("\n"):
            stamp, _, text = line.partition(" ")
            # Fixed width, so that text compares as time; the windows overlap.
            if _STAMP.fullmatch(stamp) and stamp > self._last_line:
                self._last_line = stamp
                text = text.rstrip("\r").rpartition("\r")[2]
                self._tail.append(text)
                logger.info(f"  | {text}")
        return there

    def _read(self) -> tuple[str, bool]:
        """Return the log since the last look, with timestamps, and whether the head pod is there."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        now = self._now()
        since = {} if self._last_read is None else {"since_seconds": int(now - self._last_read) + 10}
        try:
            answer = self._core.read_namespaced_pod_log(
                self._head, self._request.namespace, container=self._container, timestamps=True, tail_lines=1000,
                _preload_content=False, _request_timeout=self._request.deadlines.request, **since,
            )  # fmt: skip
            # Read here: the body can stop coming after the answer's first line.
            read = answer.data.decode("utf-8", "replace")
        except ApiException as error:
            if error.status in (401, 403):
                if not self._refused:
                    logger.info(
                        f"RayJob {self._request.name}: its log can't be read: not allowed to `get` pods/log "
                        f"({error.status})"
                    )
                self._refused = True
            # 400: the container has not started.
            return "", error.status != 404
        except (HTTPError, OSError):
            return "", True
        self._last_read = now
        return read, True

    def warnings(self, status: Mapping[str, Any]) -> str:
        """Return the last warnings of Kubernetes about the job and its pods, or how to look for them."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            answer = self._core.list_namespaced_event(
                self._request.namespace, field_selector="type=Warning", limit=500, _preload_content=False,
                _request_timeout=self._request.deadlines.request,
            )  # fmt: skip
            events = json.loads(answer.data).get("items") or []
        except (ApiException, HTTPError, OSError, ValueError):
            return f": kubectl -n {self._request.namespace} get events"
        # The pods' and the cluster's names begin with the job's, cut short.
        cluster = status.get("rayClusterName") or self._request.name
        ours = [event for event in events if _about(event).startswith((self._request.name, cluster[:40]))]
        ours.sort(key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
        said = dict.fromkeys(f"{event.get('reason')}: {' '.join(str(event.get('message')).split())}" for event in ours)
        return "".join(f"\n  event: {line[:300]}" for line in list(said)[-5:])


def _about(event: Mapping[str, Any]) -> str:
    return str((event.get("involvedObject") or {}).get("name") or "")
