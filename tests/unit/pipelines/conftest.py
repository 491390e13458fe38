from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True, scope="session")
def _quick_stack() -> Iterator[None]:
    """Kfp asks for the whole stack, with its source lines, at each setting of a task, to name the calling method.

    Below pytest-xdist each time takes a tenth of a second, and a pipeline has fifty settings.
    """
    from kfp.dsl import pipeline_task

    def stack() -> list[tuple[None, None, None, str]]:
        return [(None, None, None, sys._getframe(depth).f_code.co_name) for depth in (1, 2)]

    pipeline_task.inspect = SimpleNamespace(stack=stack)
    yield
    pipeline_task.inspect = inspect
