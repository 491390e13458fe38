"""The Kubernetes API as the launcher meets it: connection, time, its answers, and the signal to end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from amlp.cluster.rayjob.errors import Interrupted
from amlp.errors import UserError


@dataclass(frozen=True)
class Clock:
    """Time in seconds, and waiting; tests bring one that does not wait."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def connect(host: str = "") -> Any:
    """Return an API client: of the pod's service account, else of the kubeconfig; `host` takes any server without both.

    Raises:
        UserError: there is neither.
    """
    from kubernetes import client, config

    configuration = client.Configuration()
    if host:
        configuration.host = host
    else:
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            try:
                config.load_kube_config(client_configuration=configuration)
            except config.ConfigException as error:
                raise UserError(f"no Kubernetes here: neither a service account nor a kubeconfig ({error}).") from error
    # Repeating is the launcher's, which knows deadlines.
    configuration.retries = False
    return client.ApiClient(configuration)


def answer_of(error: Any) -> str:
    """What the API server says, without the headers."""
    body = error.body.decode("utf-8", "replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        return str((yaml.safe_load(body) or {})["message"])
    except (yaml.YAMLError, KeyError, TypeError):
        return f"{error.status} {error.reason}"


@contextmanager
def told_to_end() -> Iterator[Callable[[], None]]:
    """Turn the first SIGTERM into `Interrupted`, and ignore more of them; restore the handler in the end.

    Yields a function after which no SIGTERM is heeded.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python allows signal handlers in the main thread alone.
        yield lambda: None
        return

    def deaf() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def end(number: int, frame: object) -> None:
        deaf()
        raise Interrupted("asked to end by SIGTERM")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield deaf
    finally:
        signal.signal(signal.SIGTERM, before)
