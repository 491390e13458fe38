"""Answers of Kubeflow's API about a run, in the shape of the real ones, and ones that nobody expects."""

from __future__ import annotations

import random
from typing import Any

from pipelines.runs import TASKS


def mutated(value: Any, chance: random.Random) -> Any:
    """A copy with fields missing, null, renamed, extra or of another type."""
    if isinstance(value, dict):
        made = {}
        for key, entry in value.items():
            match chance.random():
                case x if x < 0.03:
                    continue
                case x if x < 0.06:
                    made[key] = None
                case x if x < 0.09:
                    made[f"{key}_"] = entry
                case x if x < 0.12:
                    made[key] = chance.choice([7, "NEW", [], {}, [None], True, "2026-13-01"])
                case _:
                    made[key] = mutated(entry, chance)
        return made | {"extra": 1}
    return [mutated(entry, chance) for entry in value] if isinstance(value, list) else value


def drawn() -> dict[str, Any]:
    """In the shape of the real ones."""
    names = [f"{task}{part}" for task in TASKS for part in ("", "(0)", "(1)", "-driver", "-driver(0)")]
    rows = [
        {"task_id": name, "display_name": name, "state": "SUCCEEDED", "state_history": [{"state": "RUNNING"}],
         "start_time": "2026-11-26T01:09:53Z", "end_time": "2026-11-26T01:10:00Z", "child_tasks": [{"pod_name": "p"}]}
        for name in [*names, "executor", "executor", "root", "condition-2"]
    ]  # fmt: skip
    history = [{"state": "RUNNING", "update_time": "2026-11-26T01:09:53Z"}, {"state": "SUCCEEDED"}]
    return {"run_id": "r", "display_name": "amlp", "state": "SUCCEEDED", "state_history": history, "error": None,
            "run_details": {"task_details": rows}}  # fmt: skip
