"""Beside a standalone Kubeflow, whose own objects nobody touches."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.kubernetes_checks import containers, of_kind
from tests.support.kubernetes_objects import Object, check_schema, name_of


def within(objects: list[Object], namespace: str) -> list[Object]:
    return [found for found in objects if found["metadata"].get("namespace") == namespace]


def identity(found: Object) -> tuple[str, str, str]:
    return found["kind"], found["metadata"].get("namespace", ""), found["metadata"]["name"]


def test_every_object_fits_its_schema(single_user: list[Object]) -> None:
    pytest.importorskip("kubernetes_validate")
    for found in single_user:
        check_schema(found)


def test_nothing_of_kubeflows_is_touched(single_user: list[Object]) -> None:
    theirs = within(single_user, "kubeflow")
    assert theirs and [name_of(found) for found in theirs if not found["metadata"]["name"].startswith("amlp-")] == []
    # No rules for other people's pods.
    kinds = {found["kind"] for found in theirs}
    assert not kinds & {"Namespace", "ResourceQuota", "LimitRange"}
    for policy in of_kind(theirs, "NetworkPolicy"):
        assert policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"].startswith("amlp-")
    assert [found["metadata"]["name"] for found in of_kind(single_user, "Namespace")] == ["amlp"]


def test_the_servers_are_those_of_dev(single_user: list[Object], dev: list[Object]) -> None:
    assert {identity(found) for found in dev} <= {identity(found) for found in single_user}


def test_the_account_of_all_tasks_may_launch(single_user: list[Object]) -> None:
    [binding] = [
        found
        for found in of_kind(within(single_user, "kubeflow"), "RoleBinding")
        if found["metadata"]["name"] == "amlp-launcher"
    ]
    assert {"kind": "ServiceAccount", "name": "pipeline-runner"} in [
        {key: subject[key] for key in ("kind", "name")} for subject in binding["subjects"]
    ]


def test_runs_find_the_servers_and_are_let_in(single_user: list[Object]) -> None:
    """By names that are known in another namespace, and that MLflow answers to."""
    [settings] = [
        found["data"]
        for found in of_kind(within(single_user, "kubeflow"), "ConfigMap")
        if found["metadata"]["name"] == "amlp-settings"
    ]
    services = {found["metadata"]["name"]: found for found in of_kind(within(single_user, "amlp"), "Service")}
    policies = of_kind(within(single_user, "amlp"), "NetworkPolicy")
    for key in ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL_S3"):
        address = urlsplit(settings[key])
        name, _, rest = (address.hostname or "").partition(".")
        assert rest == "amlp.svc.cluster.local"
        assert address.port in [port["port"] for port in services[name]["spec"]["ports"]]
        own = services[name]["spec"]["selector"].items()
        peers = [
            peer
            for policy in policies
            if policy["spec"]["podSelector"].get("matchLabels", {}).items() <= own
            for rule in policy["spec"].get("ingress", [])
            for peer in rule.get("from", [])
            if peer.get("namespaceSelector", {}).get("matchLabels") == {"kubernetes.io/metadata.name": "kubeflow"}
        ]
        assert len(peers) == 2 and all("podSelector" in peer for peer in peers)
    [mlflow] = [
        found["data"]["MLFLOW_SERVER_ALLOWED_HOSTS"]
        for found in of_kind(single_user, "ConfigMap")
        if re.fullmatch(r"mlflow-[a-z0-9]{10}", found["metadata"]["name"])
    ]
    assert urlsplit(settings["MLFLOW_TRACKING_URI"]).netloc in mlflow.split(",")


def test_secrets_are_those_of_dev(single_user: list[Object]) -> None:
    here = {found["metadata"]["name"]: found["data"] for found in of_kind(within(single_user, "kubeflow"), "Secret")}
    there = {found["metadata"]["name"]: found["data"] for found in of_kind(within(single_user, "amlp"), "Secret")}
    assert here.keys() == {"amlp-s3", "amlp-mlflow-client"}
    assert all(there[name] == data for name, data in here.items())


def test_git_takes_no_secret(project: Path) -> None:
    file = "k8s/overlays/single-user/runs/secrets/s3.env"
    if subprocess.run(["git", "rev-parse"], cwd=project, capture_output=True).returncode:
        pytest.skip("not a git checkout")
    assert subprocess.run(["git", "check-ignore", "-q", file], cwd=project).returncode == 0


def test_a_job_in_the_way_of_another_tag_there_is_none(dev: list[Object], single_user: list[Object]) -> None:
    """A Job can't be changed, so `kubectl apply` of another image's tag would fail for as long as it is kept."""
    assert of_kind(dev, "Job") == of_kind(single_user, "Job") == []
    [buckets] = [one for name, one in containers(dev) if name.endswith("s3-buckets")]
    assert "create_bucket" in buckets["command"][-1]
