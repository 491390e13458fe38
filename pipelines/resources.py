"""What the tasks' pods ask for: a preset, or a file of the user's."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field

from amlp.cluster.training import Asked, Cpu, Hours, Memory
from amlp.errors import UserError
from amlp.params import Section, parse_section


class TaskResources(Section):
    """Of one task's pod: cores, memory, and hours after which it is ended."""

    cpu: Cpu = "1"
    memory: Memory = "4Gi"
    hours: Hours = 1.0


class Resources(Section):
    """Of every task, and of the pods of Ray clusters."""

    pull_data: TaskResources = TaskResources(memory="2Gi")
    ingest: TaskResources = TaskResources(cpu="2", memory="8Gi", hours=6)
    validate_: TaskResources = Field(default=TaskResources(), alias="validate")
    preprocess: TaskResources = TaskResources(cpu="2", memory="16Gi", hours=6)
    evaluate: TaskResources = TaskResources(cpu="2", memory="8Gi", hours=6)
    register_: TaskResources = Field(default=TaskResources(), alias="register")
    gate: TaskResources = TaskResources(cpu="2", memory="8Gi", hours=6)
    record_outcome: TaskResources = TaskResources(memory="2Gi")
    # Of a training's pod, unless `--cpu`, `--memory` and `--deadline-hours` say otherwise.
    training: TaskResources = TaskResources(cpu="4", memory="24Gi", hours=24)
    # Of a task that launches a RayJob, and of the pods of its Ray cluster; empty for what the template says.
    launcher: TaskResources = TaskResources()
    ray_head: Asked = Asked()
    ray_worker: Asked = Asked()

    def of(self, task: str) -> TaskResources:
        """Return those of a task by its name in the pipeline."""
        fields = {field.alias or name: name for name, field in type(self).model_fields.items()}
        found: TaskResources = getattr(self, fields[task.replace("-", "_")])
        return found


def _small() -> Resources:
    values = Resources().model_dump(by_alias=True)
    for name, entry in values.items():
        if name.startswith("ray_"):
            continue
        # Two tasks run at a time; PyTorch alone takes 1 GiB.
        entry |= {"cpu": "300m", "memory": "2Gi" if entry["memory"] == "2Gi" else "3Gi"}
    values["training"] |= {"cpu": "500m", "memory": "4Gi"}
    # A head and one worker, beside the task that launches them, which takes 130 MB. Ray takes 1.9 GiB of a head, and
    # kills its own actors at 95 %.
    values["launcher"]["memory"] = "1Gi"
    values["ray_head"] = {"cpu": "300m", "memory": "3Gi"}
    values["ray_worker"] = {"cpu": "500m", "memory": "3Gi"}
    return Resources.model_validate(values)


PRESETS = {"standard": Resources(), "small": _small()}


def load_resources(name: str) -> Resources:
    """Return a preset, or what a YAML file says: per task `cpu`, `memory` and `hours`, the rest as in `standard`.

    Raises:
        UserError: there is neither, or the file names other tasks or values.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if not path.is_file():
        raise UserError(f"--resources {name}: expected {' or '.join(PRESETS)}, or a YAML file.")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {error}") from error
    if not isinstance(given, dict):
        raise UserError(f"{path}: expected tasks with cpu, memory and hours, such as `ingest: {{memory: 4Gi}}`.")
    values = Resources().model_dump(by_alias=True)
    for task, entry in given.items():
        key = str(task).replace("-", "_")
        if key != task and key in given:
            raise UserError(f"{path}: {task} and {key} are the same task; keep one of them.")
        values[key] = {**values.get(key, {}), **entry} if isinstance(entry, dict) else entry
    return parse_section(Resources, values, str(path))
