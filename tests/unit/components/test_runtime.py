"""What happens around a component's function within its task."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kfp.dsl import Artifact
from mlflow import MlflowClient

from amlp.errors import UserError
from components.common import stage
from components.runtime import PAUSES, Attempt, load_settings, nearly_full, run_task, tried


@pytest.fixture
def task(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], Any]:
    """Runs a function as the task `find-lesions` of a pipeline run."""
    monkeypatch.setenv("AMLP_PIPELINE_RUN", "p1")
    monkeypatch.setenv("AMLP_RECORD", json.dumps({"tracking_uri": tracking_uri, "experiment": "amlp"}))
    monkeypatch.setattr("components.runtime.PAUSES", (0.0, 0.0))

    def run(function: Callable[..., Any], **inputs: Any) -> Any:
        module = types.ModuleType("some_tasks")
        module.find_lesions = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "some_tasks", module)
        return run_task("some_tasks", "find_lesions", inputs)

    return run


def count(folder: Path) -> int:
    """Note a try, in whatever process; return how many there were."""
    with (folder / "tries").open("a") as file:
        file.write("x")
    return counted(folder)


def counted(folder: Path) -> int:
    return len((folder / "tries").read_text())


def parents(tracking_uri: str) -> list[Any]:
    client = MlflowClient(tracking_uri=tracking_uri)
    return list(client.search_runs([one.experiment_id for one in client.search_experiments()]))


def test_a_task_gets_its_inputs_and_returns_its_output(task: Any, tracking_uri: str) -> None:
    assert task(lambda a, b: a + b, a=1, b=2) == 3
    assert not parents(tracking_uri)


def test_several_outputs_and_metadata_come_back(task: Any, tmp_path: Path) -> None:
    class Outcome(NamedTuple):
        outcome: str
        score: float

    def judge(found: Artifact) -> Outcome:
        found.metadata["reason"] = "better"
        return Outcome("promote", 0.5)

    artifact = Artifact("found", str(tmp_path / "found"))
    assert tuple(task(judge, found=artifact)) == ("promote", 0.5)
    assert artifact.metadata == {"reason": "better"}


def test_a_users_error_is_recorded_and_has_its_exit_code(
    task: Any, tracking_uri: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse() -> None:
        count(tmp_path)
        raise UserError("images.csv: 3 columns; expected 4")

    with pytest.raises(SystemExit) as exited:
        task(refuse)
    assert exited.value.code == 2 and counted(tmp_path) == 1
    assert capfd.readouterr().err == "amlp: images.csv: 3 columns; expected 4\n"
    [run] = parents(tracking_uri)
    assert run.info.status == "FAILED" and run.data.tags["pipeline_task"] == "find-lesions"
    assert run.data.tags["pipeline_error"] == "find-lesions: images.csv: 3 columns; expected 4"
    assert run.data.tags["pipeline_error_kind.find-lesions"] == "mistake"


def test_a_task_that_succeeds_after_all_takes_its_error_back(task: Any, tracking_uri: str) -> None:
    """As where its pod was deleted and Kubeflow made another one."""
    with pytest.raises(SystemExit):
        task(lambda: 1 // 0)
    assert task(lambda: 1 // 1) == 1
    [run] = parents(tracking_uri)
    assert run.info.status == "RUNNING" and not [tag for tag in run.data.tags if tag.startswith("pipeline_error")]


def test_an_error_names_artifacts_and_not_the_folders_of_the_pod(task: Any, tmp_path: Path, tracking_uri: str) -> None:
    def refuse(cases: Artifact, cases_more: Artifact) -> None:
        raise UserError(f"{cases.path}/manifest.parquet and {cases_more.path}: not of the same patients")

    found = [Artifact(name, str(tmp_path / "deep" / name)) for name in ("cases", "cases-more")]
    with pytest.raises(SystemExit, match="2"):
        task(refuse, cases=found[0], cases_more=found[1])
    [run] = parents(tracking_uri)
    assert run.data.tags["pipeline_error"] == (
        "find-lesions: cases/manifest.parquet and cases_more: not of the same patients"
    )


def test_a_bug_is_recorded_with_its_traceback_and_tried_once(
    task: Any, tracking_uri: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def divide() -> float:
        count(tmp_path)
        return 1 / 0

    with pytest.raises(SystemExit) as exited:
        task(divide)
    assert exited.value.code == 1 and counted(tmp_path) == 1
    assert "return 1 / 0\n" in capfd.readouterr().err
    [run] = parents(tracking_uri)
    assert run.data.tags["pipeline_error"] == "find-lesions: ZeroDivisionError: division by zero"
    assert run.data.tags["pipeline_error_kind.find-lesions"] == "error"


def test_an_error_that_can_not_be_recorded_is_still_the_tasks(
    task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AMLP_RECORD", json.dumps({"tracking_uri": f"sqlite:///{tmp_path}/file/x.db"}))
    with pytest.raises(SystemExit, match="1"):
        task(lambda: 1 // 0)
    assert "find-lesions: the error could not be written to MLflow: " in capfd.readouterr().err


def test_what_may_pass_is_tried_again(
    task: Any, tracking_uri: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def flaky() -> str:
        if count(tmp_path) < 3:
            raise ConnectionResetError("by S3")
        return "done"

    assert task(flaky) == "done" and counted(tmp_path) == 3 and not parents(tracking_uri)
    assert capfd.readouterr().err.count("This may pass: trying again") == 2


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "its process was killed by SIGKILL."),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "its process was killed by SIGTERM."),
        (lambda: os._exit(3), "its process ended with exit code 3, and without a reason."),
    ],
    ids=["killed", "terminated", "exit-code"],
)
def test_a_task_whose_process_is_killed_is_tried_again(
    task: Any, tracking_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], end: Callable[[], None], said: str
) -> None:
    """And finds what the tries before left for it."""

    def train(kills: int) -> int:
        state = Path(os.environ["AMLP_STATE"], "last")
        steps = int(state.read_text()) if state.exists() else 0
        state.write_text(str(steps + 1))
        if count(tmp_path) <= kills:
            end()
        return steps

    assert task(train, kills=2) == 2
    assert capfd.readouterr().err.count(f"find-lesions: {said}") == 2 and not parents(tracking_uri)
    with pytest.raises(SystemExit) as exited:
        task(train, kills=99)
    assert exited.value.code == 1 and counted(tmp_path) == 6
    [run] = parents(tracking_uri)
    assert run.data.tags["pipeline_error"] == f"find-lesions: {said}"


def test_lack_of_memory_is_tried_once_more(
    task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking_uri: str
) -> None:
    """As the kernel tells it, in the files of cgroup 1 and 2."""
    events = tmp_path / "memory" / "memory.oom_control"
    events.parent.mkdir()
    events.write_text("low 0\noom 0\noom_kill 0\n")
    monkeypatch.setattr("components.runtime.CGROUP", tmp_path)

    def swell() -> None:
        events.write_text(f"low 0\noom 1\noom_kill {count(tmp_path)}\n")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(SystemExit, match="1"):
        task(swell)
    assert counted(tmp_path) == 2
    [run] = parents(tracking_uri)
    assert run.data.tags["pipeline_error"].startswith("find-lesions: its process was killed for lack of memory")


GIB = 2**30


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes the files of a container of cgroup 2, whose processes the kernel kills all at once."""
    monkeypatch.setattr("components.runtime.CGROUP", tmp_path)

    def write(anon: float, shmem: float = 0, limit: str = str(4 * GIB), together: str = "1") -> None:
        (tmp_path / "memory.oom.group").write_text(f"{together}\n")
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        stat = f"anon {int(anon * GIB)}\nfile {9 * GIB}\nshmem {int(shmem * GIB)}\n"
        (tmp_path / "memory.stat").write_text(stat)

    return write


def test_work_is_ended_before_the_kernel_ends_the_whole_task(
    task: Any, tmp_path: Path, cgroup: Callable[..., None], tracking_uri: str
) -> None:
    cgroup(anon=1)

    def swell() -> None:
        count(tmp_path)
        cgroup(anon=3.9)
        signal.pause()

    with pytest.raises(SystemExit, match="1"):
        task(swell)
    assert counted(tmp_path) == 2
    [run] = parents(tracking_uri)
    said = "find-lesions: its process was ended at 3.9 of 4.0 GiB of memory; give the task more."
    assert run.data.tags["pipeline_error"] == said


def test_memory_counts_where_its_lack_ends_the_whole_task(cgroup: Callable[..., None], tmp_path: Path) -> None:
    cgroup(anon=3, shmem=0.9)
    assert nearly_full() == "3.9 of 4.0 GiB"
    # Files that the kernel keeps in memory don't.
    cgroup(anon=3.7)
    assert not nearly_full()
    cgroup(anon=5, limit="max")
    assert not nearly_full()
    # The kernel would end the one process that takes most.
    cgroup(anon=5, together="0")
    assert not nearly_full()
    (tmp_path / "memory.oom.group").unlink()
    assert not nearly_full()


def test_sigterm_reaches_the_function_and_is_recorded(project: Path, tmp_path: Path, tracking_uri: str) -> None:
    """The function ends its own work first, and no further try follows."""
    (tmp_path / "some_tasks.py").write_text(
        "import signal, sys, time\nfrom pathlib import Path\n\n"
        "def launch(folder):\n"
        "    def end(*_):\n"
        "        Path(folder, 'deleted').touch()\n"
        "        sys.exit(5)\n"
        "    signal.signal(signal.SIGTERM, end)\n"
        "    Path(folder, 'began').touch()\n"
        "    print('began', flush=True)\n"
        "    time.sleep(600)\n"
    )
    code = f"from components.runtime import run_task; run_task('some_tasks', 'launch', {{'folder': {str(tmp_path)!r}}})"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{project}{os.pathsep}{tmp_path}",
        "AMLP_PIPELINE_RUN": "p1",
        "AMLP_RECORD": json.dumps({"tracking_uri": tracking_uri, "experiment": "amlp"}),
    }
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "began\n"
        process.terminate()
        assert process.wait(60) == 143
    assert (tmp_path / "deleted").exists()
    [run] = parents(tracking_uri)
    assert run.data.tags["pipeline_error"].startswith("launch: was asked to end (SIGTERM)")
    assert run.data.tags["pipeline_error_kind.launch"] == "killed"


def test_no_try_follows_the_last_and_none_a_users_error() -> None:
    def tries(*ends: str) -> tuple[str, list[float]]:
        slept: list[float] = []
        left = [Attempt(end) for end in ends]  # type: ignore[arg-type]
        last = tried(lambda: left.pop(0), "x", sleep=slept.append)
        assert not left
        return last.end, slept

    assert tries("pass", "killed", "pass") == ("pass", list(PAUSES))
    assert tries("mistake") == ("mistake", []) and tries("error") == ("error", [])
    assert tries("memory", "memory") == ("memory", [PAUSES[0]])
    assert tries("memory", "pass", "ok") == ("ok", list(PAUSES))


def test_mounted_settings_become_variables_unless_they_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kubernetes mounts them: links to a folder that changes as a whole."""
    versions = tmp_path / "amlp-settings" / "..2026_11_26"
    versions.mkdir(parents=True)
    for name, text in {"AMLP_TEST_ONE": "1\n", "AMLP_TEST_TWO": "2", "not-a-variable": "3"}.items():
        (versions / name).write_text(text)
        (versions.parent / name).symlink_to(f"..2026_11_26/{name}")
    monkeypatch.setenv("AMLP_TEST_TWO", "of the plugin")
    monkeypatch.setenv("AMLP_TEST_ONE", "")
    monkeypatch.delenv("AMLP_TEST_ONE")
    load_settings(tmp_path)
    assert os.environ["AMLP_TEST_ONE"] == "1" and os.environ["AMLP_TEST_TWO"] == "of the plugin"
    assert "not-a-variable" not in os.environ
    load_settings(tmp_path / "absent")


def test_a_task_names_its_function_and_runs_it(project: Path, tmp_path: Path) -> None:
    """In a process as Kubeflow starts it, where the decorators of kfp are absent."""
    (tmp_path / "shapes.py").write_text(
        "from kfp.dsl import Artifact, Input, Output\n"
        "from components.common import stage\n\n"
        "def squared(x: int) -> int:\n    return x * x\n\n"
        "@stage\n"
        "def area(side: int, scale: Input[Artifact], drawing: Output[Artifact]) -> int:\n"
        '    """Compute an area.\n\n    Args:\n        side: cm.\n    """\n'
        "    drawing.metadata['side'] = side\n"
        "    with open(drawing.path, 'w') as file:\n        file.write('square')\n"
        "    return squared(side) * int(open(scale.path).read())\n"
    )
    (tmp_path / "scale").write_text("2")
    code = (
        "import shapes, json\n"
        "c = shapes.area.component_spec\n"
        "print(json.dumps([c.description, c.implementation.container.command, "
        "[str(part) for part in c.implementation.container.args]]))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{project}{os.pathsep}{tmp_path}"}
    compiled = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    description, command, arguments = json.loads(compiled.stdout)
    assert description == "Compute an area." and "squared" not in compiled.stdout
    assert len(json.dumps([command, arguments])) < 200

    def artifact(name: str) -> dict[str, Any]:
        found = {"name": name, "type": {"schemaTitle": "system.Artifact"}, "uri": f"{tmp_path}/{name}", "metadata": {}}
        return {"artifacts": [found]}

    given = {
        "inputs": {"parameterValues": {"side": 7}, "artifacts": {"scale": artifact("scale")}},
        "outputs": {
            "parameters": {"Output": {"outputFile": str(tmp_path / "result")}},
            "artifacts": {"drawing": artifact("drawing")},
            "outputFile": str(tmp_path / "output.json"),
        },
    }
    words = [part if part != "{{$}}" else json.dumps(given) for part in [*command, *arguments]]
    done = subprocess.run([sys.executable, *words[1:]], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "output.json").read_text())
    assert written["parameterValues"] == {"Output": 98}
    [found] = written["artifacts"]["drawing"]["artifacts"]
    assert found["metadata"]["side"] == 7 and found["metadata"]["contents"].startswith("area: 1 file, 6 bytes, ")


def test_a_component_within_a_task_is_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_KFP_RUNTIME", "true")

    def function() -> None: ...

    assert stage(function) is function
