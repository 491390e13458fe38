"""A run of Kubeflow's API as rows for people: one row per task, in the pipeline's order.

The API lists Argo's nodes, several for each task: `x` for all tries, `x(0)`, `x(1)` for each, `x-driver` for Kubeflow's
own, `executor`, `executor(0)` for the pods of all tasks alike; some have no name or no state. Where the node list is
large it stops at an earlier state. Nothing here relies on a field being there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

# Kubeflow's name for the pipeline.
PIPELINE = "amlp-training"
TASKS = (
    "pull-data", "ingest", "validate", "preprocess", "pretrain", "scratch", "finetune", "evaluate", "register",
    "gate", "record-outcome",
)  # fmt: skip
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
UNREPORTED, NOT_RUN = "not reported by Kubeflow", "not run"
_TRY = re.compile(r"(?P<task>.+)\((?P<number>\d+)\)")
_NO_TASK = re.compile(rf"(root|executor|exit-handler-\d+.*|condition-\d+.*|{PIPELINE}-.*|.*-driver)")


@dataclass(frozen=True)
class Row:
    """One task of a run.

    Args:
        task: its name in the pipeline.
        state: as Kubeflow writes it, or UNREPORTED or NOT_RUN.
        tries: how many began; 0 where it came from the cache or did not run.
        seconds: from its start to its end; None where that is not known.
        cached: whether it came from the cache.
    """

    task: str
    state: str
    tries: int = 0
    seconds: float | None = None
    cached: bool = False

    def __str__(self) -> str:
        text = f"{self.task:16} {self.state}"
        if self.cached:
            return f"{text}, from the cache"
        if self.tries > 1:
            text += f", {self.tries} tries"
        if self.seconds is None or self.state == NOT_RUN:
            return text
        minutes, seconds = divmod(round(self.seconds), 60)
        return text + (f", {minutes} min {seconds:02} s" if minutes else f", {seconds} s")


def rows_of(run: Any) -> list[Row]:
    """Return one row per task, in the pipeline's order, unknown tasks last; before the end those that are listed."""
    run = run if isinstance(run, Mapping) else {}
    details = run.get("run_details")
    nodes = details.get("task_details") if isinstance(details, Mapping) else None
    whole: dict[str, Mapping[str, Any]] = {}
    tries: dict[str, list[Mapping[str, Any]]] = {}
    pods: dict[tuple[str, str], set[int]] = {}
    for node in nodes if isinstance(nodes, list) else []:
        name = node.get("display_name") if isinstance(node, Mapping) else None
        if not isinstance(name, str) or not name:
            continue
        if name == "executor" and isinstance(children := node.get("child_tasks"), list):
            pods.setdefault(_times(node), set()).add(len(children))
        attempt = _TRY.fullmatch(name)
        task = attempt["task"] if attempt else name
        if _NO_TASK.fullmatch(task):
            continue
        if attempt:
            tries.setdefault(task, []).append(node)
        else:
            whole[task] = node
    known = whole.keys() | tries.keys()
    if not known & set(TASKS):
        return []
    ended = run.get("state") in ENDED
    rows = []
    for task in [*TASKS, *sorted(known - set(TASKS))]:
        if task in known:
            row = _row(task, whole.get(task), tries.get(task, []), ended=ended)
            rows.append(replace(row, tries=max(row.tries, _pods(whole.get(task), pods))) if row.tries else row)
        elif ended:
            rows.append(Row(task, UNREPORTED))
    return rows


def _row(task: str, whole: Mapping[str, Any] | None, tries: list[Mapping[str, Any]], *, ended: bool) -> Row:
    node = whole or max(tries, key=lambda one: str(one.get("start_time") or ""))
    state, history = node.get("state"), node.get("state_history")
    seconds = _seconds(node)
    if not isinstance(state, str) or not state:
        return Row(task, NOT_RUN if ended else "PENDING")
    if ended and state in ("PENDING", "RUNNING"):
        # What ran has begun at least one try; how that ended is not there.
        return Row(task, UNREPORTED, max(len(tries), state == "RUNNING"))
    # A task from the cache succeeds in the moment in which it starts, and never runs.
    cached = state == "SUCCEEDED" and seconds == 0 and isinstance(history, list) and len(history) == 1
    return Row(task, state, 0 if cached else max(1, len(tries)), seconds, cached)


def _pods(whole: Mapping[str, Any] | None, pods: Mapping[tuple[str, str], set[int]]) -> int:
    """How many pods a task had, as Kubeflow repeats one that vanished; 0 where it is not known.

    An `executor` names no task, so it is the one that began and ended with it, if there is only one number of pods.
    """
    counts = pods.get(_times(whole), set()) if whole else set()
    return max(counts) if len(counts) == 1 else 0


def _times(node: Mapping[str, Any]) -> tuple[str, str]:
    return str(node.get("start_time")), str(node.get("end_time"))


def _seconds(node: Mapping[str, Any]) -> float | None:
    try:
        start, end = (datetime.fromisoformat(str(node.get(key))) for key in ("start_time", "end_time"))
        return max(0.0, (end - start).total_seconds())
    except (ValueError, TypeError):
        return None


def unfinished(run: Any) -> list[str]:
    """Return the tasks that failed, or that had begun and did not end, as far as Kubeflow knows them."""
    done = ("SUCCEEDED", "SKIPPED", "OMITTED", "PENDING", NOT_RUN)
    # The exit handler's task fails with a run that is terminated.
    rows = [row for row in rows_of(run) if row.state not in done and row.task != TASKS[-1]]
    return [row.task for row in rows if row.tries]


def in_state(run: Any, state: str) -> list[str]:
    """Return the tasks that Kubeflow says are in a state, without the exit handler's."""
    return [row.task for row in rows_of(run) if row.state == state and row.task != TASKS[-1]]


def as_json(run: Any, link: str) -> dict[str, Any]:
    """Return a run and its tasks as plain values."""
    run = run if isinstance(run, Mapping) else {}
    return {
        "run_id": run.get("run_id"),
        "name": run.get("display_name"),
        "state": run.get("state"),
        "link": link,
        "tasks": [asdict(row) for row in rows_of(run)],
    }


def message_of(body: Any) -> str:
    """Return what an error's body says: its `message` or `error`, or the text; at most 1,000 characters."""
    import json

    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body or "")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text[:1000]
    if isinstance(found, Mapping):
        for key in ("message", "error"):
            if isinstance(found.get(key), str) and found[key]:
                return str(found[key])[:1000]
    return text[:1000]
