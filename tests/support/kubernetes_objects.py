"""Kubernetes objects in tests: rendering k8s/, and checking objects against the schemas of their kinds."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.support.servers import lacking

PROJECT = Path(__file__).parents[2]
# KubeRay's definition of RayJob v1 without its pod templates (nine tenths of it), descriptions and CEL rules; pods are
# checked against Kubernetes' own schema. Apache-2.0, as this project. `make_rayjob_schema` makes it.
RAYJOB_SCHEMA = PROJECT / "tests/support/rayjob-v1.schema.json"
# The whole of it, in checkouts that have it beside them.
CRD = PROJECT / "../shared/crds/ray.io_rayjobs.yaml"

# The oldest release of Kubernetes that the manifests are checked against, and one that is current.
KUBERNETES = ("1.30", "1.37")
Object = dict[str, Any]


def render(overlay: Path) -> list[Object]:
    """Render an overlay as `kubectl apply -k` does; the test is `lacking` kubectl where it is absent or too old.

    The template of RayJobs, which travels as text in a ConfigMap, is among the objects as the RayJob that it describes.
    """
    if not shutil.which("kubectl"):
        lacking("kubectl is not installed (Debian 13: apt-get install kubernetes-client)")
    version = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"Kustomize Version: v(\d+)", version)
    if not found or int(found[1]) < 5:
        lacking("kubectl is too old: 1.27 or later has the kustomize 5 that k8s/ is written for")
    done = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Deprecated fields are warnings, and would be errors one day.
    assert not done.stderr, done.stderr
    objects = [found for found in yaml.safe_load_all(done.stdout) if found]
    return objects + [rayjob_template(found) for found in objects if is_template(found)]


def is_template(found: Object) -> bool:
    """Whether this is the ConfigMap that holds the template of RayJobs."""
    return found["kind"] == "ConfigMap" and "rayjob.yaml" in found["data"]


def rayjob_template(config: Object) -> Object:
    """Read the RayJob out of its ConfigMap, with the namespace in which it is going to be created."""
    rayjob = yaml.safe_load(config["data"]["rayjob.yaml"])
    rayjob["metadata"]["namespace"] = config["metadata"]["namespace"]
    return rayjob


def name_of(found: Object) -> str:
    return f"{found['kind']}/{found['metadata']['name']}"


def pod_templates(found: Object) -> Iterator[tuple[str, Object]]:
    """Each pod template of an object, with a name for messages."""
    name = name_of(found)
    if found["kind"] == "RayJob":
        cluster = found["spec"]["rayClusterSpec"]
        yield f"{name} head", cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield f"{name} {group['groupName']}", group["template"]
        if "submitterPodTemplate" in found["spec"]:
            yield f"{name} submitter", found["spec"]["submitterPodTemplate"]
    elif found["kind"] == "CronJob":
        yield name, found["spec"]["jobTemplate"]["spec"]["template"]
    elif "template" in found.get("spec", {}):
        yield name, found["spec"]["template"]


def check_schema(found: Object) -> None:
    """Check an object against its kind's schema; a field that the schema does not know is an error.

    Raises:
        jsonschema.ValidationError: it does not fit.
    """
    import kubernetes_validate

    if found["kind"] != "RayJob":
        for version in KUBERNETES:
            kubernetes_validate.validate(found, version, strict=True)
        return
    jsonschema.validate(found, strict(json.loads(RAYJOB_SCHEMA.read_text(encoding="utf-8"))))
    for _, template in pod_templates(found):
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}, "template": template}
        for version in KUBERNETES:
            kubernetes_validate.validate(wrapped, version, strict=True)
    if CRD.is_file():
        jsonschema.validate(found, strict(crd_schema()))


@cache
def crd_schema() -> Object:
    """The schema of RayJob v1 in KubeRay's custom resource definition."""
    definition = yaml.load(CRD.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [found for found in definition["spec"]["versions"] if found["name"] == "v1"]
    return version["schema"]["openAPIV3Schema"]


def make_rayjob_schema() -> Object:
    """Cut the definition down to what tests/support/rayjob-v1.schema.json holds."""
    return _cut(crd_schema())


def _cut(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_cut(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for key, value in schema.items():
        if key == "properties":
            kept[key] = {
                name: {"type": "object", "x-kubernetes-preserve-unknown-fields": True} if _is_pod(part) else _cut(part)
                for name, part in value.items()
            }
        elif key != "description" and not (key.startswith("x-") and key != "x-kubernetes-preserve-unknown-fields"):
            kept[key] = _cut(value)
    return kept


def _is_pod(schema: Object) -> bool:
    return "containers" in schema.get("properties", {}).get("spec", {}).get("properties", {})


def strict(schema: Any) -> Any:
    """Forbid what a schema does not name, as the API server does with strict field validation."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = copy.copy(schema)
    for key in ("properties", "items", "additionalProperties", "anyOf", "allOf", "oneOf"):
        if key == "properties" and key in made:
            made[key] = {name: strict(part) for name, part in made[key].items()}
        elif key in made:
            made[key] = strict(made[key])
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
        # Parts that the top level leaves to every kind alike.
        if {"apiVersion", "kind", "metadata"} <= made["properties"].keys():
            made["properties"]["metadata"] = {"type": "object"}
    return made
