"""Servers that tests alone need, and how tests start any server; the rest are in devtools/servers.py."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

from devtools.servers import MissingProgram, answers, free_ports, running, wait_for

S = TypeVar("S")


def lacking(what: str) -> NoReturn:
    """Skip a test that lacks a server or a program; fail it where AMLP_REQUIRE_SERVERS is 1, as .ci/run sets it.

    Args:
        what: is missing, and how to install it.
    """
    if os.environ.get("AMLP_REQUIRE_SERVERS") == "1":
        pytest.fail(f"AMLP_REQUIRE_SERVERS is 1, and this is missing: {what}", pytrace=False)
    pytest.skip(what)


@contextmanager
def or_skip(server: AbstractContextManager[S]) -> Iterator[S]:
    """Start a server; where its program is not installed, the test is `lacking` it."""
    with ExitStack() as stack:
        try:
            started = stack.enter_context(server)
        except MissingProgram as error:
            lacking(str(error))
        yield started


@dataclass(frozen=True)
class RayHead:
    """A Ray cluster of one node that takes jobs."""

    dashboard: str


@contextmanager
def ray_head(environment: Mapping[str, str], *, cwd: Path, cpus: int) -> Iterator[RayHead]:
    """Run a Ray head whose jobs see `environment`, apart from any other Ray on this machine."""
    if not find_spec("aiohttp_cors"):
        lacking("ray[default] is not installed; `make setup`")
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
             "node-manager-port", "object-manager-port", "runtime-env-agent-port", "metrics-export-port")  # fmt: skip
    options = [f"--{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]
    dashboard = f"http://127.0.0.1:{options[1].partition('=')[2]}"
    # Short, for sockets lie in it, and their paths hold 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary:
        options += ["--head", "--block", "--include-dashboard=true", "--disable-usage-stats"]
        options += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={temporary}"]
        options += [f"--num-cpus={cpus}", f"--object-store-memory={128 << 20}"]
        ray = Path(sys.executable).with_name("ray")
        log = Path(temporary, "log")
        # Never `ray stop`, which ends every Ray on the machine. Killed, for so do nodes end.
        with running([ray, "start", *options], log=log, cwd=cwd, environment={**os.environ, **environment}) as process:
            wait_for(lambda: answers(f"{dashboard}/api/version"), name="Ray", process=process, log=log)
            yield RayHead(dashboard)
