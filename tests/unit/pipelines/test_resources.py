from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from amlp.errors import UserError
from pipelines.compile import write_pipeline
from pipelines.resources import PRESETS, TaskResources, load_resources

# kfp's first import takes long on a machine that is busy.
pytestmark = pytest.mark.timeout(240)


def cores(text: str) -> float:
    return float(text.removesuffix("m")) / (1000 if text.endswith("m") else 1)


def test_small_lets_two_tasks_run_on_a_node_of_two_cores() -> None:
    small = PRESETS["small"]
    for task in ("ingest", "preprocess", "evaluate", "gate", "register", "validate", "training"):
        asked = small.of(task)
        assert cores(asked.cpu) <= 0.5 and int(asked.memory.removesuffix("Gi")) <= 4, task
        assert asked.hours == PRESETS["standard"].of(task).hours


def test_small_has_room_for_two_ray_clusters_on_a_machine_of_sixteen_gib() -> None:
    """Ray itself takes 1.9 GiB of a head's memory, and kills its own actors at 95 %."""
    small = PRESETS["small"]
    head, worker, launcher = (
        int(memory.removesuffix("Gi"))
        for memory in (small.ray_head.memory, small.ray_worker.memory, small.launcher.memory)
    )
    assert head >= 3 and worker >= 3 and 2 * (head + worker + launcher) <= 14


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "resources.yaml"
    file.write_text("ingest: {memory: 4Gi}\npull-data: {cpu: 200m}\n")
    found = load_resources(str(file))
    assert found.of("ingest") == TaskResources(cpu="2", memory="4Gi", hours=6)
    assert found.of("pull-data").cpu == "200m"
    assert found.of("gate") == PRESETS["standard"].of("gate")
    # As Kubernetes takes it.
    file.write_text("ingest: {cpu: 2}\ngate: {cpu: 0.5}\n")
    assert load_resources(str(file)).of("ingest").cpu == "2" and load_resources(str(file)).of("gate").cpu == "0.5"
    file.write_text("")
    assert load_resources(str(file)) == load_resources("standard")


@pytest.mark.parametrize(
    ("text", "said"),
    [("ingets: {memory: 4Gi}", "ingets: unknown key"), ("ingest: {memory: 4 GB}", "ingest.memory"),
     ("ingest: 4", "ingest"), ("- ingest", "expected tasks"), ("{", "not YAML"), ("ingest: {hours: -1}", "hours"),
     ("ingest: {cpu: -1}", "ingest.cpu"), ("ingest: {cpu: true}", "ingest.cpu"),
     ("ingest: {cpu: 0}", "ingest.cpu"), ("ingest: {cpu: 0.5m}", "ingest.cpu"),
     ("ingest: {memory: 0Gi}", "ingest.memory"),
     ("ingest: {memory: 4K}", "ingest.memory"), ("ingest: {hours: 1.0e+12}", "hours"),
     ("ingest: {hours: 1.0e-9}", "hours"),
     ("pull-data: {cpu: 1}\npull_data: {cpu: 2}", "are the same task")],
)  # fmt: skip
def test_a_mistake_in_a_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "resources.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=said) as refused:
        load_resources(str(file))
    assert "resources.yaml" in str(refused.value)


def test_neither_preset_nor_file() -> None:
    with pytest.raises(UserError, match="--resources tiny: expected standard or small, or a YAML file"):
        load_resources("tiny")


def test_tasks_ask_for_what_was_chosen(tmp_path: Path) -> None:
    write_pipeline(tmp_path / "small.yaml", resources=PRESETS["small"])
    pipeline, _ = yaml.safe_load_all((tmp_path / "small.yaml").read_text(encoding="utf-8"))
    asked = pipeline["deploymentSpec"]["executors"]["exec-preprocess"]["container"]["resources"]
    assert (asked["resourceCpuRequest"], asked["resourceMemoryLimit"]) == ("300m", "3Gi")
