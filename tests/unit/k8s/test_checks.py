"""The checks notice what they are for: each change here would be a mistake, and one check must say so."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import ValidationError

from tests.support import kubernetes_checks as checks
from tests.support.kubernetes_checks import of_kind, references
from tests.support.kubernetes_objects import Object, check_schema

Change = Callable[[list[Object]], Any]


def one(objects: list[Object], kind: str, name: str) -> Object:
    # ConfigMaps may carry a hash of their content.
    named = re.compile(rf"{name}(-[a-z0-9]{{10}})?")
    (found,) = [found for found in of_kind(objects, kind) if named.fullmatch(found["metadata"]["name"])]
    return found


def mlflow(objects: list[Object]) -> Object:
    return one(objects, "Deployment", "mlflow")["spec"]["template"]


def container(objects: list[Object]) -> Object:
    return mlflow(objects)["spec"]["containers"][0]


def rayjob(objects: list[Object]) -> Object:
    return one(objects, "RayJob", "amlp-template")["spec"]


def worker(objects: list[Object]) -> Object:
    return rayjob(objects)["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]


def head(objects: list[Object]) -> Object:
    return rayjob(objects)["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]


def role(objects: list[Object]) -> Object:
    return one(objects, "Role", "amlp-launcher")


def binding(objects: list[Object]) -> Object:
    return one(objects, "RoleBinding", "amlp-launcher")


def budget(objects: list[Object]) -> Object:
    return one(objects, "PodDisruptionBudget", "mlflow")["spec"]


def policy(objects: list[Object], name: str) -> Object:
    return one(objects, "NetworkPolicy", name)["spec"]


def settings(objects: list[Object]) -> Object:
    return one(objects, "ConfigMap", "amlp-settings")["data"]


def hosts(objects: list[Object], old: str, new: str) -> None:
    data = one(objects, "ConfigMap", "mlflow")["data"]
    assert old in data["MLFLOW_SERVER_ALLOWED_HOSTS"]
    data["MLFLOW_SERVER_ALLOWED_HOSTS"] = data["MLFLOW_SERVER_ALLOWED_HOSTS"].replace(old, new)


def labels(found: Object) -> Object:
    return found["metadata"]["labels"]


def env(found: Object, name: str) -> Object:
    return next(entry for entry in found["env"] if entry["name"] == name)


MISTAKES: list[tuple[Callable[[list[Object]], list[str]], Change]] = [
    (checks.namespaces, lambda o: labels(one(o, "Namespace", "amlp")).pop("pod-security.kubernetes.io/enforce")),
    (
        checks.namespaces,
        lambda o: labels(one(o, "Namespace", "amlp")).update({"pod-security.kubernetes.io/warn": "baseline"}),
    ),
    (checks.namespaces, lambda o: o.remove(one(o, "Namespace", "amlp"))),
    (checks.namespaces, lambda o: one(o, "Service", "mlflow")["metadata"].update(namespace="default")),
    (checks.namespaces, lambda o: binding(o)["metadata"].pop("namespace")),
    (checks.pods, lambda o: mlflow(o)["spec"].pop("securityContext")),
    (checks.pods, lambda o: mlflow(o)["spec"]["securityContext"].update(runAsNonRoot=False)),
    (checks.pods, lambda o: head(o)["securityContext"].update(runAsUser=0)),
    (checks.pods, lambda o: worker(o)["securityContext"].pop("seccompProfile")),
    (checks.pods, lambda o: worker(o).update(automountServiceAccountToken=True)),
    (checks.pods, lambda o: worker(o).update(serviceAccountName="amlp-launcher")),
    (checks.pods, lambda o: head(o).update(hostNetwork=True)),
    (checks.pods, lambda o: container(o).pop("securityContext")),
    (checks.pods, lambda o: head(o)["containers"][1]["securityContext"].update(allowPrivilegeEscalation=True)),
    (checks.pods, lambda o: worker(o)["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False)),
    (checks.pods, lambda o: container(o)["securityContext"].update(privileged=True)),
    (checks.pods, lambda o: container(o)["securityContext"].update(runAsUser=0)),
    (checks.pods, lambda o: container(o)["securityContext"]["capabilities"].update(add=["NET_ADMIN"])),
    (checks.pods, lambda o: container(o)["resources"]["limits"].pop("memory")),
    (checks.pods, lambda o: container(o)["resources"]["limits"].pop("cpu")),
    (checks.pods, lambda o: container(o)["resources"].pop("requests")),
    (checks.pods, lambda o: worker(o)["containers"][0]["resources"]["requests"].pop("nvidia.com/gpu")),
    (checks.pods, lambda o: container(o)["ports"][0].update(hostPort=5000)),
    (checks.pods, lambda o: worker(o)["volumes"].append({"name": "node", "hostPath": {"path": "/"}})),
    (checks.pods, lambda o: worker(o)["volumes"][0]["emptyDir"].pop("sizeLimit")),
    (checks.pods, lambda o: mlflow(o)["spec"].update(initContainers=[{"name": "root", "image": "busybox:1"}])),
    (checks.writable, lambda o: container(o)["volumeMounts"].pop(0)),
    (checks.writable, lambda o: env(head(o)["containers"][0], "HOME").update(value="/root")),
    (checks.writable, lambda o: worker(o)["volumes"][2]["emptyDir"].pop("medium")),
    (checks.writable, lambda o: worker(o)["containers"][0]["volumeMounts"].pop(2)),
    (checks.mounts, lambda o: worker(o)["volumes"].pop(1)),
    (checks.mounts, lambda o: head(o)["volumes"].append({"name": "unused", "emptyDir": {}})),
    (checks.images, lambda o: container(o).update(image="amlp-mlflow")),
    (checks.images, lambda o: container(o).update(image="amlp-mlflow:latest")),
    (checks.images, lambda o: container(o).update(image="registry.example.com:5000/amlp-mlflow")),
    (checks.images, lambda o: head(o)["containers"][1].update(image="amlp-train")),
    (checks.images, lambda o: worker(o)["containers"][0].update(imagePullPolicy="Always")),
    (checks.rights, lambda o: role(o)["rules"][0]["verbs"].append("list")),
    (checks.rights, lambda o: role(o)["rules"][0]["verbs"].remove("delete")),
    (checks.rights, lambda o: role(o)["rules"][0]["resources"].append("rayclusters")),
    (checks.rights, lambda o: role(o)["rules"][1]["resources"].append("pods")),
    (checks.rights, lambda o: role(o)["rules"].append({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]})),
    (checks.rights, lambda o: role(o)["rules"][0].update(resourceNames=["one"])),
    (checks.rights, lambda o: role(o)["rules"][0].update(apiGroups=["*"])),
    (checks.rights, lambda o: binding(o)["roleRef"].update(kind="ClusterRole", name="admin")),
    (checks.rights, lambda o: binding(o)["subjects"].append({"kind": "Group", "name": "all"})),
    (checks.rights, lambda o: binding(o)["subjects"][0].update(namespace="default")),
    (checks.rights, lambda o: binding(o)["subjects"][0].update(name="amlp-workload")),
    (checks.rights, lambda o: o.append({"kind": "ClusterRole", "metadata": {"name": "more"}, "rules": []})),
    (checks.rights, lambda o: one(o, "ServiceAccount", "amlp-workload").pop("automountServiceAccountToken")),
    (checks.selectors, lambda o: labels(mlflow(o)).update({"app.kubernetes.io/name": "other"})),
    (checks.selectors, lambda o: one(o, "Service", "mlflow")["spec"].update(selector={"app": "mlflow"})),
    (checks.selectors, lambda o: budget(o).update(selector={"matchLabels": {"a": "b"}})),
    (checks.selectors, lambda o: policy(o, "ray").update(podSelector={"matchLabels": {"amlp/role": "rays"}})),
    (
        checks.selectors,
        lambda o: policy(o, "mlflow")["ingress"][0]["from"][0].update(podSelector={"matchLabels": {"amlp/role": "x"}}),
    ),
    (checks.ports, lambda o: one(o, "Service", "mlflow")["spec"]["ports"][0].update(targetPort=5001)),
    (checks.ports, lambda o: container(o)["livenessProbe"]["httpGet"].update(port="web")),
    (checks.ports, lambda o: policy(o, "mlflow")["ingress"][0]["ports"][0].update(port=8080)),
    (checks.ports, lambda o: policy(o, "ray")["egress"][1]["ports"][0].update(port=5001)),
    (checks.network, lambda o: o.remove(one(o, "NetworkPolicy", "default-deny"))),
    (checks.network, lambda o: policy(o, "default-deny").update(policyTypes=["Ingress"])),
    (checks.network, lambda o: policy(o, "default-deny").update(egress=[{}])),
    (checks.network, lambda o: policy(o, "ray")["ingress"].append({})),
    (checks.network, lambda o: policy(o, "ray")["egress"].append({})),
    (checks.network, lambda o: policy(o, "pipeline")["egress"][2]["ports"].append({"port": 22})),
    (checks.network, lambda o: policy(o, "ray")["ingress"][1]["from"][0].update(namespaceSelector={})),
    (checks.network, lambda o: policy(o, "ray")["egress"].append({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]})),
    (checks.network, lambda o: policy(o, "pipeline").update(policyTypes=["Ingress"])),
    (checks.network, lambda o: o.remove(one(o, "NetworkPolicy", "dns"))),
    (checks.exposure, lambda o: one(o, "Service", "mlflow")["spec"].update(type="NodePort")),
    (checks.exposure, lambda o: o.append({"kind": "Ingress", "metadata": {"name": "mlflow"}})),
    (checks.passwords, lambda o: settings(o).update(AWS_SECRET_ACCESS_KEY="a")),
    (checks.passwords, lambda o: settings(o).update(DATABASE="postgresql://user:word@host/db")),
    (checks.passwords, lambda o: container(o)["env"].append({"name": "MLFLOW_TRACKING_PASSWORD", "value": "a"})),
    (checks.mlflow_hosts, lambda o: hosts(o, "mlflow:5000,", "mlflow,")),
    (checks.mlflow_hosts, lambda o: hosts(o, "mlflow.amlp.svc.cluster.local:5000", "mlflow.amlp.svc.cluster.local")),
    (checks.mlflow_hosts, lambda o: hosts(o, "localhost:5000", "*")),
    (checks.mlflow_hosts, lambda o: one(o, "ConfigMap", "mlflow")["data"].pop("MLFLOW_SERVER_ALLOWED_HOSTS")),
    (checks.mlflow_hosts, lambda o: settings(o).update(MLFLOW_TRACKING_URI="http://mlflow")),
    (checks.mlflow_hosts, lambda o: one(o, "Service", "mlflow")["spec"]["ports"][0].update(port=80)),
    (checks.quotas, lambda o: o.remove(one(o, "ResourceQuota", "amlp"))),
    (checks.quotas, lambda o: o.remove(one(o, "LimitRange", "amlp"))),
    (checks.quotas, lambda o: one(o, "ResourceQuota", "amlp")["spec"]["hard"].pop("requests.nvidia.com/gpu")),
    (checks.quotas, lambda o: one(o, "ResourceQuota", "amlp")["spec"]["hard"].update({"requests.cpu": "4"})),
    (checks.quotas, lambda o: one(o, "LimitRange", "amlp")["spec"]["limits"][0].pop("default")),
    (checks.budgets, lambda o: o.remove(one(o, "PodDisruptionBudget", "mlflow"))),
    (checks.budgets, lambda o: budget(o).update(maxUnavailable=0)),
    (checks.budgets, lambda o: budget(o).update(minAvailable=2)),
    (checks.probes, lambda o: container(o).pop("readinessProbe")),
    (checks.rayjobs, lambda o: o.remove(one(o, "RayJob", "amlp-template"))),
    (checks.rayjobs, lambda o: rayjob(o).pop("shutdownAfterJobFinishes")),
    (checks.rayjobs, lambda o: rayjob(o).pop("ttlSecondsAfterFinished")),
    (checks.rayjobs, lambda o: rayjob(o).pop("activeDeadlineSeconds")),
    (checks.rayjobs, lambda o: rayjob(o).pop("preRunningDeadlineSeconds")),
    (checks.rayjobs, lambda o: rayjob(o).pop("backoffLimit")),
    (checks.rayjobs, lambda o: rayjob(o).update(submissionMode="SidecarMode")),
    (checks.rayjobs, lambda o: rayjob(o).update(suspend=True)),
    (checks.rayjobs, lambda o: rayjob(o)["rayClusterSpec"].pop("authOptions")),
    (checks.rayjobs, lambda o: env(head(o)["containers"][0], "RAY_AUTH_MODE").update(value="disabled")),
    (checks.rayjobs, lambda o: env(worker(o)["containers"][0], "RAY_USAGE_STATS_ENABLED").update(value="1")),
    (checks.rayjobs, lambda o: worker(o)["containers"][0]["envFrom"].pop()),
    (checks.rayjobs, lambda o: head(o)["containers"].pop()),
    (checks.rayjobs, lambda o: rayjob(o)["rayClusterSpec"]["workerGroupSpecs"][0].update(maxReplicas=3)),
]


@pytest.fixture
def changed(objects: list[Object]) -> list[Object]:
    return copy.deepcopy(objects)


@pytest.mark.parametrize(("check", "change"), MISTAKES)
def test_a_mistake_is_noticed(changed: list[Object], check: Callable[[list[Object]], list[str]], change: Change):
    change(changed)
    assert check(changed)


def test_each_check_has_a_mistake():
    assert {check for check, _ in MISTAKES} == set(checks.CHECKS)


@pytest.mark.parametrize(
    "change",
    [
        lambda o: o.remove(one(o, "Secret", "amlp-s3")),
        lambda o: one(o, "Secret", "amlp-mlflow-server")["data"].pop("MLFLOW_BACKEND_STORE_URI"),
        lambda o: one(o, "Secret", "amlp-mlflow-server")["data"].pop("basic_auth.ini"),
        lambda o: o.remove(one(o, "ConfigMap", "amlp-settings")),
        lambda o: o.remove(one(o, "ConfigMap", "seaweedfs")),
        lambda o: worker(o)["containers"][0]["envFrom"][1]["secretRef"].update(name="other"),
    ],
)
def test_a_lost_reference_is_noticed(dev: list[Object], change: Change):
    objects = copy.deepcopy(dev)
    change(objects)
    assert references(objects, set())


@pytest.mark.parametrize(
    ("kind", "name", "change", "said"),
    [
        (
            "RayJob",
            "amlp-template",
            lambda found: found["spec"].update(shutdownAfterJobFinish=True),
            "shutdownAfterJobFinish",
        ),
        ("RayJob", "amlp-template", lambda found: found["spec"].update(backoffLimit="2"), "'2' is not of type"),
        (
            "RayJob",
            "amlp-template",
            lambda found: found["spec"]["rayClusterSpec"].pop("headGroupSpec"),
            "headGroupSpec",
        ),
        (
            "RayJob",
            "amlp-template",
            lambda found: found["spec"]["rayClusterSpec"].update(authOptions={"mode": "none"}),
            "none",
        ),
        (
            "RayJob",
            "amlp-template",
            lambda found: worker([found])["containers"][0].update(volumeMount=[]),
            "volumeMount",
        ),
        (
            "RayJob",
            "amlp-template",
            lambda found: head([found])["securityContext"].update(runAsNonroot=True),
            "runAsNonroot",
        ),
        ("Deployment", "mlflow", lambda found: found["spec"].update(replica=2), "replica"),
        ("Deployment", "mlflow", lambda found: found["spec"].pop("selector"), "selector"),
        ("NetworkPolicy", "default-deny", lambda found: found["spec"].update(policyType=["Ingress"]), "policyType"),
        ("Role", "amlp-launcher", lambda found: found["rules"][0].pop("verbs"), "verbs"),
    ],
)
def test_a_field_that_does_not_exist_does_not_fit_the_schema(
    prod: list[Object], kind: str, name: str, change: Change, said: str
) -> None:
    pytest.importorskip("kubernetes_validate")
    found = copy.deepcopy(one(prod, kind, name))
    check_schema(found)
    change(found)
    with pytest.raises(ValidationError, match=f"^.*{said}"):
        check_schema(found)
