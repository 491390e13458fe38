"""What we ask of rendered Kubernetes objects. Each check lists what is wrong, as text that names the object."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from tests.support.kubernetes_objects import Object, name_of, pod_templates

# All that each Role may do and whom it is bound to; nobody else may do anything.
MAY = {
    "amlp-launcher": {
        ("", "pods/log", "get"),
        ("", "events", "list"),
        *(("ray.io", "rayjobs", verb) for verb in ("create", "get", "delete")),
    },
    "amlp-sweeper": {("", "pods", "get"), ("ray.io", "rayjobs", "list"), ("ray.io", "rayjobs", "delete")},
}
BOUND = {"amlp-launcher": {"amlp-launcher", "default-editor"}, "amlp-sweeper": {"amlp-sweeper"}}
SWEEPER = "Deployment/amlp-sweeper"
CLUSTER_WIDE = {"Namespace"}
# What Pod Security `restricted` lets pods mount, less the kinds that we don't need.
VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [found for found in objects if found["kind"] in kinds]


def templates(objects: list[Object]) -> list[tuple[str, Object]]:
    return [template for found in objects for template in pod_templates(found)]


def containers(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for name, template in templates(objects):
        for group in ("initContainers", "containers"):
            for container in template["spec"].get(group, []):
                yield f"{name} {container['name']}", container


def namespaces(objects: list[Object]) -> list[str]:
    """One namespace, which enforces Pod Security `restricted`, and everything is in it."""
    made = of_kind(objects, "Namespace")
    wrong = [] if len(made) == 1 else [f"{len(made)} namespaces"]
    for mode in ("enforce", "audit", "warn"):
        wrong += [
            f"{name_of(found)}: {mode}"
            for found in made
            if found["metadata"].get("labels", {}).get(f"pod-security.kubernetes.io/{mode}") != "restricted"
        ]
    home = {found["metadata"]["name"] for found in made}
    for found in objects:
        if found["kind"] not in CLUSTER_WIDE and found["metadata"].get("namespace") not in home:
            wrong.append(f"{name_of(found)} in namespace {found['metadata'].get('namespace')}")
    return wrong


def pods(objects: list[Object]) -> list[str]:
    """Pods fit Pod Security `restricted`, have no token, a read-only root and nothing of the node."""
    wrong = []
    for name, template in templates(objects):
        spec = template["spec"]
        context = spec.get("securityContext", {})
        asked = {
            "runAsNonRoot": context.get("runAsNonRoot") is True,
            "runAsUser": context.get("runAsUser", 0) > 0,
            "seccomp": context.get("seccompProfile") == {"type": "RuntimeDefault"},
            "sysctls": not context.get("sysctls"),
            # The one pod that talks to Kubernetes.
            "no token": spec.get("automountServiceAccountToken") is False or name == SWEEPER,
            "no rights": spec.get("serviceAccountName") == ("amlp-sweeper" if name == SWEEPER else "amlp-workload"),
            "node": not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC", "hostUsers")),
        }
        wrong += [f"{name}: {what}" for what, good in asked.items() if not good]
        for volume in spec.get("volumes", []):
            kinds = volume.keys() - {"name"}
            if not kinds <= VOLUMES:
                wrong.append(f"{name}: volume {volume['name']} is {kinds}")
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                wrong.append(f"{name}: volume {volume['name']} has no limit")
    for name, container in containers(objects):
        context = container.get("securityContext", {})
        limits = container.get("resources", {}).get("limits", {})
        requests = container.get("resources", {}).get("requests", {})
        asked = {
            "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is False,
            "readOnlyRootFilesystem": context.get("readOnlyRootFilesystem") is True,
            "capabilities": context.get("capabilities") == {"drop": ["ALL"]},
            "privileged": not context.get("privileged"),
            "overrides the pod": not context.keys() & {"runAsNonRoot", "runAsUser", "seccompProfile", "procMount"},
            "limits": {"cpu", "memory"} <= limits.keys(),
            "requests": {"cpu", "memory"} <= requests.keys(),
            "host ports": not any("hostPort" in port for port in container.get("ports", [])),
            "gpus": requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu"),
        }
        wrong += [f"{name}: {what}" for what, good in asked.items() if not good]
    return wrong


def writable(objects: list[Object]) -> list[str]:
    """With a read-only root, HOME and /tmp lie on volumes, and Ray has shared memory."""
    wrong = []
    for name, container in containers(objects):
        mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
        home = {entry["name"]: entry.get("value") for entry in container.get("env", [])}.get("HOME")
        if "/tmp" not in mounts:
            wrong.append(f"{name}: /tmp")
        if home is not None and home not in mounts:
            wrong.append(f"{name}: HOME {home}")
    for found in of_kind(objects, "RayJob"):
        for name, template in pod_templates(found):
            spec, container = template["spec"], template["spec"]["containers"][0]
            memory = {v["name"] for v in spec["volumes"] if v.get("emptyDir", {}).get("medium") == "Memory"}
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            if mounts.get("/dev/shm") not in memory:
                wrong.append(f"{name}: /dev/shm")
    return wrong


def mounts(objects: list[Object]) -> list[str]:
    """Each mount's volume exists, and each volume is mounted."""
    wrong = []
    claims = {
        f"{name}": {claim["metadata"]["name"] for claim in found["spec"].get("volumeClaimTemplates", [])}
        for found in of_kind(objects, "StatefulSet")
        for name, _ in pod_templates(found)
    }
    for name, template in templates(objects):
        spec = template["spec"]
        there = {volume["name"] for volume in spec.get("volumes", [])} | claims.get(name, set())
        used = {
            mount["name"]
            for group in ("initContainers", "containers")
            for container in spec.get(group, [])
            for mount in container.get("volumeMounts", [])
        }
        wrong += [f"{name}: no volume {volume}" for volume in used - there]
        wrong += [f"{name}: volume {volume} is not used" for volume in there - used]
    return wrong


def images(objects: list[Object]) -> list[str]:
    """Images have a version that does not move, or a digest."""
    wrong = []
    for name, container in containers(objects):
        image = container["image"]
        tag = re.search(r":([\w.-]+)$", image)
        if not re.search(r"@sha256:[0-9a-f]{64}$", image) and (not tag or tag[1] == "latest"):
            wrong.append(f"{name}: {image}")
        if container.get("imagePullPolicy") != "IfNotPresent":
            wrong.append(f"{name}: {container.get('imagePullPolicy')}")
    return wrong


def rights(objects: list[Object]) -> list[str]:
    """The Roles and their bindings give launcher and sweeper what they call and nobody anything else."""
    wrong = [name_of(found) for found in of_kind(objects, "ClusterRole", "ClusterRoleBinding")]
    roles = {found["metadata"]["name"]: found for found in of_kind(objects, "Role")}
    granted: dict[str, set[tuple[str, str, str]]] = {name: set() for name in MAY}
    for binding in of_kind(objects, "RoleBinding"):
        role = roles.get(binding["roleRef"]["name"]) if binding["roleRef"]["kind"] == "Role" else None
        if role is None:
            wrong.append(f"{name_of(binding)}: {binding['roleRef']}")
            continue
        for subject in binding["subjects"]:
            home = subject.get("namespace", binding["metadata"]["namespace"])
            may_be = BOUND.get(binding["roleRef"]["name"], set())
            if subject["kind"] != "ServiceAccount" or subject["name"] not in may_be:
                wrong.append(f"{name_of(binding)}: {subject}")
            if home != binding["metadata"]["namespace"]:
                wrong.append(f"{name_of(binding)}: {subject}")
        for rule in role["rules"]:
            if rule.keys() - {"apiGroups", "resources", "verbs"}:
                wrong.append(f"{name_of(role)}: {rule}")
            granted.setdefault(role["metadata"]["name"], set()).update(
                (group, resource, verb)
                for group in rule.get("apiGroups", [])
                for resource in rule.get("resources", [])
                for verb in rule["verbs"]
            )
    for name, rights_of in granted.items():
        wrong += [f"{name}, too much: {right}" for right in rights_of - MAY.get(name, set())]
        wrong += [f"{name}, missing: {right}" for right in MAY.get(name, set()) - rights_of]
    accounts = {found["metadata"]["name"]: found for found in of_kind(objects, "ServiceAccount")}
    if accounts.keys() != {"amlp-launcher", "amlp-sweeper", "amlp-workload"}:
        wrong.append(f"service accounts {sorted(accounts)}")
    elif accounts["amlp-workload"].get("automountServiceAccountToken") is not False:
        wrong.append("ServiceAccount/amlp-workload has a token")
    return wrong


def selectors(objects: list[Object]) -> list[str]:
    """Selectors of Services, budgets and policies meet pods of ours; those of workloads meet their own."""
    wrong = []
    labels = [template["metadata"].get("labels", {}) for _, template in templates(objects)]

    def meets(selector: Object) -> bool:
        # Kubeflow's pods are not in these objects.
        expressions = selector.get("matchExpressions", [])
        if expressions == [{"key": "workflows.argoproj.io/workflow", "operator": "Exists"}]:
            return "matchLabels" not in selector
        wanted = selector.get("matchLabels", {}).items()
        return not expressions and any(wanted <= found.items() for found in labels)

    for found in of_kind(objects, "Deployment", "StatefulSet"):
        wanted, own = found["spec"]["selector"]["matchLabels"], found["spec"]["template"]["metadata"]["labels"]
        if not wanted or not wanted.items() <= own.items():
            wrong.append(f"{name_of(found)}: {wanted}")
    for found in of_kind(objects, "Service"):
        if not found["spec"].get("selector") or not meets({"matchLabels": found["spec"]["selector"]}):
            wrong.append(f"{name_of(found)}: {found['spec'].get('selector')}")
    for found in of_kind(objects, "PodDisruptionBudget"):
        if not found["spec"]["selector"].get("matchLabels") or not meets(found["spec"]["selector"]):
            wrong.append(f"{name_of(found)}: {found['spec']['selector']}")
    for found in of_kind(objects, "NetworkPolicy"):
        for selector in policy_selectors(found):
            if selector and not meets(selector):
                wrong.append(f"{name_of(found)}: {selector}")
    services = {found["metadata"]["name"] for found in of_kind(objects, "Service")}
    for found in of_kind(objects, "StatefulSet"):
        if found["spec"]["serviceName"] not in services:
            wrong.append(f"{name_of(found)}: {found['spec']['serviceName']}")
    return wrong


def policy_selectors(policy: Object) -> Iterator[Object]:
    yield policy["spec"]["podSelector"]
    for peer in policy_peers(policy):
        if "podSelector" in peer and "namespaceSelector" not in peer:
            yield peer["podSelector"]


def policy_peers(policy: Object) -> Iterator[Object]:
    for direction, key in (("ingress", "from"), ("egress", "to")):
        for rule in policy["spec"].get(direction, []):
            yield from rule.get(key, [])


def ports(objects: list[Object]) -> list[str]:
    """Ports of Services, probes and policies are those that containers open."""
    wrong = []

    def opened(selector: Object) -> set[Any]:
        met = [t for _, t in templates(objects) if selector.items() <= t["metadata"].get("labels", {}).items()]
        return {
            port[key]
            for template in met
            for container in template["spec"]["containers"]
            for port in container.get("ports", [])
            for key in ("name", "containerPort")
        }

    for found in of_kind(objects, "Service"):
        for port in found["spec"]["ports"]:
            if port.get("targetPort", port["port"]) not in opened(found["spec"]["selector"]):
                wrong.append(f"{name_of(found)}: {port}")
    for name, container in containers(objects):
        own = {port[key] for port in container.get("ports", []) for key in ("name", "containerPort")}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if "httpGet" in container.get(probe, {}) and container[probe]["httpGet"]["port"] not in own:
                wrong.append(f"{name}: {probe}")
    for found in of_kind(objects, "NetworkPolicy"):
        selector = found["spec"]["podSelector"].get("matchLabels", {})
        for rule in found["spec"].get("ingress", []):
            for port in rule.get("ports", []):
                if port["port"] not in opened(selector):
                    wrong.append(f"{name_of(found)}: from {port}")
        for rule in found["spec"].get("egress", []):
            for peer in rule.get("to", []):
                target = peer.get("podSelector", {}).get("matchLabels")
                if target and "namespaceSelector" not in peer:
                    wrong += [
                        f"{name_of(found)}: to {port}"
                        for port in rule.get("ports", [])
                        if port["port"] not in opened(target)
                    ]
    return wrong


def network(objects: list[Object]) -> list[str]:
    """Default deny both ways, and nothing but HTTPS and the Kubernetes API goes to just anywhere."""
    wrong = []
    policies = of_kind(objects, "NetworkPolicy")
    denied: set[str] = set()
    for found in policies:
        spec = found["spec"]
        if spec["podSelector"] == {} and not spec.get("ingress") and not spec.get("egress"):
            denied |= set(spec["policyTypes"])
        declared = {kind for kind, key in (("Ingress", "ingress"), ("Egress", "egress")) if key in spec}
        if not declared <= set(spec["policyTypes"]):
            wrong.append(f"{name_of(found)}: {spec['policyTypes']}")
        for rule in spec.get("ingress", []):
            if not rule.get("from"):
                wrong.append(f"{name_of(found)}: from anywhere")
        for rule in spec.get("egress", []):
            anywhere = not rule.get("to")
            if anywhere and (not rule.get("ports") or {port["port"] for port in rule["ports"]} - {443, 6443}):
                wrong.append(f"{name_of(found)}: to anywhere")
        for peer in policy_peers(found):
            if peer.get("namespaceSelector") == {}:
                wrong.append(f"{name_of(found)}: any namespace")
            if "ipBlock" in peer and ipaddress.ip_network(peer["ipBlock"]["cidr"]).prefixlen < 8:
                wrong.append(f"{name_of(found)}: {peer}")
    wrong += [f"no default deny of {kind}" for kind in ("Ingress", "Egress") if kind not in denied]
    for name, template in templates(objects):
        own = template["metadata"].get("labels", {}).items()
        selected = [found for found in policies if "Egress" in found["spec"]["policyTypes"]]
        allowed = [
            port["port"]
            for found in selected
            if found["spec"]["podSelector"].get("matchLabels", {}).items() <= own
            for rule in found["spec"].get("egress", [])
            for port in rule.get("ports", [])
        ]
        if 53 not in allowed:
            wrong.append(f"{name}: no DNS")
    return wrong


def exposure(objects: list[Object]) -> list[str]:
    """No Service is reachable from outside the cluster."""
    wrong = [
        name_of(found) for found in of_kind(objects, "Service") if found["spec"].get("type", "ClusterIP") != "ClusterIP"
    ]
    return wrong + [name_of(found) for found in of_kind(objects, "Ingress")]


def references(objects: list[Object], known: set[tuple[str, str, str]]) -> list[str]:
    """ConfigMaps, Secrets and their keys that containers read exist.

    Args:
        objects: as rendered.
        known: (kind, name, key) of what somebody else makes.
    """
    there = set(known)
    for found in of_kind(objects, "ConfigMap", "Secret"):
        values = {**found.get("data", {}), **found.get("stringData", {})}
        there |= {(found["kind"], found["metadata"]["name"], key) for key in values}
    names = {(kind, name) for kind, name, _ in there}
    wrong = []
    for name, container in containers(objects):
        for source in container.get("envFrom", []):
            for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if key in source and (kind, source[key]["name"]) not in names:
                    wrong.append(f"{name}: {kind} {source[key]['name']}")
        for entry in container.get("env", []):
            for key, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                ref = entry.get("valueFrom", {}).get(key)
                if ref and (kind, ref["name"], ref["key"]) not in there:
                    wrong.append(f"{name}: {kind} {ref['name']} {ref['key']}")
    for name, template in templates(objects):
        for volume in template["spec"].get("volumes", []):
            for kind, source, key in (
                ("ConfigMap", volume.get("configMap"), "name"),
                ("Secret", volume.get("secret"), "secretName"),
            ):
                if source is None:
                    continue
                if (kind, source[key]) not in names:
                    wrong.append(f"{name}: {kind} {source[key]}")
                wrong += [
                    f"{name}: {kind} {source[key]} {item['key']}"
                    for item in source.get("items", [])
                    if (kind, source[key], item["key"]) not in there
                ]
    return wrong


def passwords(objects: list[Object]) -> list[str]:
    """Nothing that looks like a secret stands in a ConfigMap or in plain environment variables."""
    looks = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|CREDENTIAL|PRIVATE", re.IGNORECASE)
    login = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
    wrong = [
        f"{name_of(found)}: {key}"
        for found in of_kind(objects, "ConfigMap")
        for key, text in found["data"].items()
        if looks.search(key) or login.search(text)
    ]
    for name, container in containers(objects):
        wrong += [
            f"{name}: {entry['name']}"
            for entry in container.get("env", [])
            if "value" in entry and (looks.search(entry["name"]) or login.search(entry["value"]))
        ]
    return wrong


def mlflow_hosts(objects: list[Object]) -> list[str]:
    """MLflow answers under each name that its Service and our settings give it, with the port; never to any host."""
    configs = {found["metadata"]["name"]: found["data"] for found in of_kind(objects, "ConfigMap")}
    (deployment,) = [found for found in of_kind(objects, "Deployment") if found["metadata"]["name"] == "mlflow"]
    (service,) = [found for found in of_kind(objects, "Service") if found["metadata"]["name"] == "mlflow"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    own = {source["configMapRef"]["name"] for source in container["envFrom"] if "configMapRef" in source}
    settings = {key: value for name in own for key, value in configs.get(name, {}).items()}
    hosts = settings.get("MLFLOW_SERVER_ALLOWED_HOSTS", "").split(",")
    wrong = [f"host {host!r}" for host in hosts if "*" in host or host != host.strip() or not host]
    # Without a port only beside the same name with HTTPS's own port, which browsers leave out.
    wrong += [f"{host} has no port" for host in hosts if ":" not in host and f"{host}:443" not in hosts]
    port, namespace = service["spec"]["ports"][0]["port"], service["metadata"]["namespace"]
    names = ["mlflow", f"mlflow.{namespace}", f"mlflow.{namespace}.svc", f"mlflow.{namespace}.svc.cluster.local"]
    wrong += [f"{name}:{port} is refused" for name in names if f"{name}:{port}" not in hosts]
    address = urlsplit(configs["amlp-settings"]["MLFLOW_TRACKING_URI"])
    if address.netloc not in hosts:
        wrong.append(f"{address.netloc} is refused")
    return wrong


def quotas(objects: list[Object]) -> list[str]:
    """A quota and defaults for containers without limits, and our own fit into them."""
    wrong = [
        f"{len(of_kind(objects, kind))} of kind {kind}"
        for kind in ("ResourceQuota", "LimitRange")
        if len(of_kind(objects, kind)) != 1
    ]
    for found in of_kind(objects, "ResourceQuota"):
        asked = {"requests.cpu", "requests.memory", "limits.memory", "requests.nvidia.com/gpu", "pods"}
        asked |= {"count/rayjobs.ray.io", "services.loadbalancers", "services.nodeports"}
        wrong += [f"no quota of {what}" for what in asked - found["spec"]["hard"].keys()]
        for template in of_kind(objects, "RayJob"):
            cpu = sum(cores(container["resources"]["requests"]["cpu"]) for _, container in containers([template]))
            if cpu > cores(found["spec"]["hard"].get("requests.cpu", "0")):
                wrong.append("a RayJob does not fit into the quota")
    for found in of_kind(objects, "LimitRange"):
        for limit in found["spec"]["limits"]:
            if not {"default", "defaultRequest", "max"} <= limit.keys():
                wrong.append(f"{name_of(found)}: {limit}")
    return wrong


def cores(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def budgets(objects: list[Object]) -> list[str]:
    """Each server has a disruption budget, and none blocks the drain of a node for good."""
    wrong = []
    found = of_kind(objects, "PodDisruptionBudget")
    for deployment in of_kind(objects, "Deployment"):
        if name_of(deployment) == SWEEPER:
            continue
        labels = deployment["spec"]["template"]["metadata"]["labels"].items()
        mine = [budget for budget in found if budget["spec"]["selector"]["matchLabels"].items() <= labels]
        if len(mine) != 1:
            wrong.append(f"{name_of(deployment)} has {len(mine)} budgets")
        for budget in mine:
            if budget["spec"].get("maxUnavailable") == 0:
                wrong.append(f"{name_of(budget)} blocks")
            if budget["spec"].get("minAvailable", 0) >= deployment["spec"]["replicas"]:
                wrong.append(f"{name_of(budget)} blocks")
    return wrong


def probes(objects: list[Object]) -> list[str]:
    """Servers are probed in all three ways."""
    return [
        f"{name}: {probe}"
        for found in of_kind(objects, "Deployment", "StatefulSet")
        for name, container in containers([found])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
        # Nobody asks the sweeper anything, and what it waits for has a limit; init containers end.
        if name_of(found) != SWEEPER and "ports" in container and probe not in container
    ]


def rayjobs(objects: list[Object]) -> list[str]:
    """The template ends by itself, cleans up, says what it needs to, and adds no pod or container that we don't see."""
    wrong = [] if of_kind(objects, "RayJob") else ["no RayJob"]
    for found in of_kind(objects, "RayJob"):
        spec = found["spec"]
        cluster = spec["rayClusterSpec"]
        head = cluster["headGroupSpec"]["template"]["spec"]["containers"]
        asked = {
            "shutdownAfterJobFinishes": spec.get("shutdownAfterJobFinishes") is True,
            "ttlSecondsAfterFinished": spec.get("ttlSecondsAfterFinished", 0) > 0,
            "activeDeadlineSeconds": spec.get("activeDeadlineSeconds", 0) > 0,
            "preRunningDeadlineSeconds": spec.get("preRunningDeadlineSeconds", 0) > 0,
            "backoffLimit": spec.get("backoffLimit", 0) > 0,
            "submissionMode": spec.get("submissionMode") == "HTTPMode",
            "suspend": "suspend" not in spec,
            "autoscaling": "enableInTreeAutoscaling" not in cluster,
            "authOptions": cluster.get("authOptions") == {"mode": "token"},
            "job-log": [container["name"] for container in head] == ["ray-head", "job-log"],
            "one group": len(cluster["workerGroupSpecs"]) == 1,
            "name": len(found["metadata"]["name"]) <= 47,
        }
        group = cluster["workerGroupSpecs"][0]
        asked["replicas"] = group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        asked["gpu"] = "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]
        wrong += [f"{name_of(found)}: {what}" for what, good in asked.items() if not good]
        for name, template in pod_templates(found):
            container = template["spec"]["containers"][0]
            values = {entry["name"]: entry.get("value") for entry in container["env"]}
            sources = {next(iter(source.values()))["name"] for source in container["envFrom"]}
            if values.get("RAY_AUTH_MODE") != cluster.get("authOptions", {}).get("mode"):
                wrong.append(f"{name}: RAY_AUTH_MODE")
            if values.get("RAY_USAGE_STATS_ENABLED") != "0":
                wrong.append(f"{name}: telemetry")
            if sources != {"amlp-settings", "amlp-s3"}:
                wrong.append(f"{name}: {sources}")
            if template["metadata"]["labels"].get("amlp/role") != "ray":
                wrong.append(f"{name}: no policy applies")
    return wrong


CHECKS: list[Callable[[list[Object]], list[str]]] = [
    namespaces,
    pods,
    writable,
    mounts,
    images,
    rights,
    selectors,
    ports,
    network,
    exposure,
    passwords,
    mlflow_hosts,
    quotas,
    budgets,
    probes,
    rayjobs,
]
