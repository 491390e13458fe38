"""A real cluster: what `make test-cluster` needs of it, and how its tests talk to it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# Without one of these there is nothing to test.
NEEDED = {
    "KUBECONFIG": "a kubeconfig with the rights of an administrator of the namespace",
    "KF_PIPELINES_ENDPOINT": "Kubeflow Pipelines, as submit's --host",
    "MLFLOW_TRACKING_URI": "MLflow as this machine reaches it; MLFLOW_TRACKING_USERNAME and _PASSWORD too",
    "AMLP_STAGES_IMAGE": "as the cluster names it, built from this commit; likewise the next",
    "AMLP_PIPELINE_IMAGE": "",
    "AMLP_TRAIN_IMAGE": "",
}
# Longest time for a run, and for anything that follows an event.
RUN_SECONDS, SOON_SECONDS = 1800.0, 120.0


@dataclass(frozen=True)
class Ended:
    """A run that has ended, as Kubeflow and MLflow tell it."""

    id: str
    state: str
    tasks: dict[str, dict[str, Any]]
    # Of MLflow's parent run.
    status: str
    outcome: str
    task: str
    error: str
    seconds: float

    @property
    def cached(self) -> set[str]:
        return {name for name, row in self.tasks.items() if row["cached"]}


@dataclass
class Cluster:
    """The cluster under test.

    Args:
        folder: for parameters.
        namespace: that runs are in.
        tracking_uri: MLflow as the cluster reaches it.
        work: s3:// prefix for checkpoints and RayJobs.
    """

    folder: Path
    namespace: str
    tracking_uri: str
    work: str
    rows: list[tuple[str, str]] = field(default_factory=list)

    def command(self, *words: str, check: bool = True) -> str:
        done = subprocess.run([sys.executable, "-m", "pipelines", *words], capture_output=True, text=True)
        assert not check or done.returncode in (0, 1, 3), f"{done.stdout}\n{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    def kubectl(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(["kubectl", "-n", self.namespace, *words], capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, params: dict[str, Any], *options: str) -> str:
        """Submit a run and return its id."""
        values = {**params, "register": {"tracking_uri": self.tracking_uri, "experiment": "amlp-acceptance"}}
        file = self.folder / "params.yaml"
        mine = self.folder / f"params-{threading.get_ident()}.yaml"
        for one in (file, mine):
            one.write_text(yaml.safe_dump(values), encoding="utf-8")
        words = ("--params", str(mine), "--resources", "small", "--experiment", "amlp-acceptance", *options)
        said = self.command("submit", *words)
        found = re.search(r"^Run (\S+)$", said, re.MULTILINE)
        assert found, said
        return found[1]

    def status(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.command("status", run, "--json", "--params", "params.yaml"))
        return found

    def wait(self, run: str, *, sync: bool = False) -> Ended:
        """Wait for a run's end."""
        start = time.monotonic()
        ended = ("SUCCEEDED", "FAILED", "CANCELED")
        until(lambda: self.api("GET", f"runs/{run}").get("state") in ended, f"run {run}", RUN_SECONDS, pause=3.0)
        if sync:
            self.command("sync", "--experiment", "amlp-acceptance", "--params", str(self.folder / "params.yaml"))
        found = self.status(run)
        info, tags = self.parent(run)
        return Ended(
            run,
            found["state"],
            {row["task"]: row for row in found["tasks"]},
            info.status if info else "",
            tags.get("pipeline_outcome", ""),
            tags.get("pipeline_task", ""),
            tags.get("pipeline_error", ""),
            time.monotonic() - start,
        )

    def parent(self, run: str) -> tuple[Any, dict[str, str]]:
        """MLflow's parent run of a run: its info and tags."""
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
        experiment = client.get_experiment_by_name("amlp-acceptance")
        if experiment is None:
            return None, {}
        found = client.search_runs([experiment.experiment_id], filter_string=f"tags.pipeline_run = '{run}'")
        own = [one for one in found if "mlflow.parentRunId" not in one.data.tags]
        return (own[0].info, dict(own[0].data.tags)) if own else (None, {})

    def api(self, verb: str, path: str, body: Any = None) -> Any:
        import requests

        address = os.environ["KF_PIPELINES_ENDPOINT"].rstrip("/")
        answer = requests.request(verb, f"{address}/apis/v2beta1/{path}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json() if answer.content else {}

    def pods(self, run: str, task: str) -> list[dict[str, Any]]:
        """The pods of a task, oldest first, drivers left out."""
        found = json.loads(self.kubectl("get", "pods", "-l", f"pipeline/runid={run}", "-o", "json"))["items"]
        name = f".{task}("
        ours = [
            pod
            for pod in found
            if name in pod["metadata"]["annotations"].get("workflows.argoproj.io/node-name", "")
            and "driver" not in pod["metadata"]["annotations"]["workflows.argoproj.io/node-name"]
        ]
        return sorted(ours, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def running(self, run: str, task: str) -> str:
        """Wait until a task's container runs; return its pod's name."""

        def now() -> str:
            for pod in self.pods(run, task):
                for container in pod["status"].get("containerStatuses", []):
                    if container["name"] == "main" and "running" in container["state"]:
                        return str(pod["metadata"]["name"])
            return ""

        return until(now, f"a pod of {task}", RUN_SECONDS)

    def working(self, run: str) -> bool:
        """Whether a pod of a run has not ended."""
        states = self.kubectl("get", "pods", "-l", f"pipeline/runid={run}", "-o", "jsonpath={.items[*].status.phase}")
        return not set(states.split()) <= {"Succeeded", "Failed"}

    def execute(self, pod: str, code: str) -> str:
        """Run Python in a task's container; it may be gone before the answer comes."""
        return self.kubectl("exec", pod, "-c", "main", "--", "python3", "-c", code, check=False)

    def rayjobs(self, run: str) -> list[str]:
        label = f"amlp/pipeline-run={run}"
        return self.kubectl("get", "rayjobs.ray.io", "-l", label, "-o", "name").split()

    def ray_state(self, run: str) -> str:
        """How far the RayJob of a run is."""
        path = "jsonpath={.items[*].status.jobDeploymentStatus} {.items[*].status.jobStatus}"
        label = f"amlp/pipeline-run={run}"
        return self.kubectl("get", "rayjobs.ray.io", "-l", label, "-o", path).strip() or "new"

    def note(self, what: str, ended: Ended) -> None:
        """A line of the table."""
        self.rows.append(
            (what, f"{ended.state}, MLflow {ended.status} {ended.outcome} {ended.task or '-'}: {ended.error[:160]!r}")
        )


def until(look: Callable[[], Any], what: str, seconds: float, *, pause: float = 0.5) -> Any:
    """Look again and again until there is something, and return it."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(pause)
    return found
