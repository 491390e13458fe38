"""What `kubectl apply -k` would send, overlay by overlay."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from amlp.cluster.rayjob import JobRequest, build, load_template
from tests.support.kubernetes_checks import CHECKS, containers, mounts, of_kind, pods, references, templates, writable
from tests.support.kubernetes_objects import CRD, RAYJOB_SCHEMA, Object, check_schema, make_rayjob_schema

# Where the template of prod may differ from the base's, which is the one that is explained.
PROD_ONLY = {
    "metadata.labels.kueue.x-k8s.io/queue-name",
    "spec.backoffLimit",
    "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.nodeSelector",
    "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.tolerations",
}


def secret_table(project: Path) -> set[tuple[str, str, str]]:
    """The Secrets and keys that docs/how-to/cluster.md tells people to make."""
    text = (project / "docs/how-to/cluster.md").read_text(encoding="utf-8")
    table = re.search(r"^Secrets that must exist.*?\n\n(.*?)\n\n", text, flags=re.MULTILINE | re.DOTALL)
    assert table
    rows = re.findall(r"^\| `(amlp-[\w-]+)` \| (.*?) \|", table[1], flags=re.MULTILINE)
    return {("Secret", name, key) for name, keys in rows for key in re.findall(r"`([\w.-]+)`", keys)}


def data(objects: list[Object], name: str) -> dict[str, str]:
    """What a ConfigMap holds; its name may carry a hash."""
    named = re.compile(rf"{name}(-[a-z0-9]{{10}})?")
    (found,) = [found for found in of_kind(objects, "ConfigMap") if named.fullmatch(found["metadata"]["name"])]
    return found["data"]


def mlflow_container(objects: list[Object]) -> Object:
    (template,) = [found for name, found in templates(objects) if name == "Deployment/mlflow"]
    (container,) = template["spec"]["containers"]
    return container


def differences(one: object, two: object, at: str = "") -> set[str]:
    if isinstance(one, dict) and isinstance(two, dict):
        keys = one.keys() | two.keys()
        return set().union(*(differences(one.get(key), two.get(key), f"{at}.{key}") for key in keys))
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return set().union(*(differences(a, b, f"{at}.{i}") for i, (a, b) in enumerate(zip(one, two, strict=True))))
    return set() if one == two else {at.removeprefix(".")}


def test_every_object_fits_its_schema(objects: list[Object]):
    pytest.importorskip("kubernetes_validate")
    for found in objects:
        check_schema(found)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_objects_pass(objects: list[Object], check: Callable[[list[Object]], list[str]]):
    assert check(objects) == []


def test_what_dev_reads_is_there(dev: list[Object]):
    assert references(dev, set()) == []


def test_what_prod_reads_is_there_or_in_the_readme(prod: list[Object], project: Path):
    table = secret_table(project)
    assert references(prod, table) == []
    names = {name for _, name, _ in table}
    # By the pipeline's tasks too.
    text = yaml.safe_dump_all(prod) + (project / "pipelines/training.yaml").read_text(encoding="utf-8")
    used = {name for name in names if re.search(rf"\b{name}\b", text)}
    assert used == names


def test_the_readme_names_the_keys_that_dev_makes(dev: list[Object], project: Path):
    made = {("Secret", found["metadata"]["name"], key) for found in of_kind(dev, "Secret") for key in found["data"]}
    # The database of prod is somebody else's.
    assert {entry for entry in made if entry[1] != "amlp-postgres"} == secret_table(project)


def test_prod_holds_no_secret(prod: list[Object]):
    assert of_kind(prod, "Secret") == []


def test_git_holds_no_secret(project: Path, dev: list[Object]):
    """The values of dev's secrets are random, and git ignores the folder that they are in."""
    ignored = subprocess.run(
        ["git", "check-ignore", "-q", "k8s/overlays/dev/secrets/s3.env"], cwd=project, check=False
    ).returncode
    tracked = subprocess.run(["git", "ls-files", "k8s"], cwd=project, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    assert ignored == 0
    assert "secrets/" not in tracked.stdout
    text = "".join(
        path.read_text(encoding="utf-8")
        for path in (project / "k8s").rglob("*")
        if path.is_file() and "secrets" not in path.parts and path.suffix != ".pyc"
    )
    values = [base64.b64decode(value).decode() for found in of_kind(dev, "Secret") for value in found["data"].values()]
    assert not [value for value in values if value != "admin" and value in text]


def test_dev_says_the_same_password_to_both_sides(dev: list[Object]):
    secrets = {
        found["metadata"]["name"]: {key: base64.b64decode(value).decode() for key, value in found["data"].items()}
        for found in of_kind(dev, "Secret")
    }
    server, client = secrets["amlp-mlflow-server"], secrets["amlp-mlflow-client"]
    assert server["MLFLOW_AUTH_ADMIN_PASSWORD"] == client["MLFLOW_TRACKING_PASSWORD"]
    assert server["MLFLOW_AUTH_ADMIN_USERNAME"] == client["MLFLOW_TRACKING_USERNAME"]
    password = secrets["amlp-postgres"]["POSTGRES_PASSWORD"]
    address = f"postgresql+psycopg2://mlflow:{password}@postgres:5432/mlflow"
    assert server["MLFLOW_BACKEND_STORE_URI"] == address
    assert f"database_uri = {address}\n" in server["basic_auth.ini"]
    service = {found["metadata"]["name"]: found for found in of_kind(dev, "Service")}
    assert service["postgres"]["spec"]["ports"][0]["port"] == 5432


def test_settings_name_the_s3_of_the_overlay(dev: list[Object]):
    (service,) = [found for found in of_kind(dev, "Service") if found["metadata"]["name"] == "seaweedfs"]
    assert (
        data(dev, "amlp-settings")["AWS_ENDPOINT_URL_S3"] == f"http://seaweedfs:{service['spec']['ports'][0]['port']}"
    )


def test_mlflow_starts_with_options_that_it_has(objects: list[Object], monkeypatch: pytest.MonkeyPatch):
    """The command's own parser takes the arguments, and finds the rest in the environment."""
    from amlp.registry.tracking import import_mlflow

    import_mlflow()
    from mlflow.cli import server

    container = mlflow_container(objects)
    sources = [source["configMapRef"]["name"] for source in container["envFrom"] if "configMapRef" in source]
    assert [re.sub(r"-[a-z0-9]{10}$", "", source) for source in sources] == ["mlflow", "amlp-settings"]
    for name, value in {**data(objects, "mlflow"), **data(objects, "amlp-settings")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql+psycopg2://…")
    assert container["command"] == ["mlflow", "server"]
    options = server.make_context("server", list(container["args"])).params
    assert options["app_name"] == "basic-auth"
    assert options["serve_artifacts"] is True
    assert options["artifacts_destination"].startswith("s3://")
    assert options["backend_store_uri"] == "postgresql+psycopg2://…"
    assert (options["host"], options["port"]) == ("0.0.0.0", container["ports"][0]["containerPort"])
    assert options["allowed_hosts"] == data(objects, "mlflow")["MLFLOW_SERVER_ALLOWED_HOSTS"]


def test_mlflow_knows_its_environment_variables(objects: list[Object]):
    """A variable that MLflow does not have would be passed over without a word."""
    from amlp.registry.tracking import import_mlflow

    import_mlflow()
    from mlflow import environment_variables
    from mlflow.cli import server

    known = set(vars(environment_variables)) | {option.envvar for option in server.params if option.envvar}
    named = {entry["name"] for entry in mlflow_container(objects)["env"]}
    named |= data(objects, "mlflow").keys() | data(objects, "amlp-settings").keys()
    assert {name for name in named if name.startswith("MLFLOW_")} <= known


def test_the_templates_are_plain_yaml(project: Path):
    """Anchors load as one object in two places, and a change to one would be a change to both."""
    for path in ("k8s/base/runs/rayjob.yaml", "k8s/overlays/prod/rayjob.yaml"):
        tokens = list(yaml.scan((project / path).read_text(encoding="utf-8")))
        assert not [token for token in tokens if isinstance(token, yaml.AnchorToken | yaml.AliasToken)]


def test_prods_template_is_the_bases_but_for_what_prod_adds(project: Path):
    base, prod = (
        yaml.safe_load((project / path).read_text(encoding="utf-8"))
        for path in ("k8s/base/runs/rayjob.yaml", "k8s/overlays/prod/rayjob.yaml")
    )
    assert differences(base, prod) == PROD_ONLY
    worker = prod["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    old = base["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert all(toleration in worker["tolerations"] for toleration in old["tolerations"])
    # Kueue's webhook asks for it.
    assert prod["spec"]["shutdownAfterJobFinishes"] is True


def test_the_pipelines_tasks_fit_the_limits_of_the_namespace(project: Path):
    """A request above the limit makes a pod invalid, and a limit that the task does not name is the LimitRange's."""
    parse_quantity = pytest.importorskip("kubernetes.utils").parse_quantity
    quota, limit_range = yaml.safe_load_all((project / "k8s/base/limits.yaml").read_text(encoding="utf-8"))
    (limits,) = limit_range["spec"]["limits"]
    pipeline = next(yaml.safe_load_all((project / "pipelines/training.yaml").read_text(encoding="utf-8")))
    inputs = pipeline["root"]["inputDefinitions"]["parameters"]

    def amount(text: str) -> Decimal:
        # Trainings' are inputs of the pipeline.
        named = re.fullmatch(r"\{\{\$\.inputs\.parameters\['pipelinechannel--(\w+)'\]\}\}", text)
        return parse_quantity(inputs[named[1]]["defaultValue"] if named else text)

    for name, executor in pipeline["deploymentSpec"]["executors"].items():
        resources = executor["container"]["resources"]
        for kind, key in (("cpu", "resourceCpu"), ("memory", "resourceMemory")):
            request, most = amount(resources[f"{key}Request"]), parse_quantity(limits["max"][kind])
            # What Kubernetes takes where there is no default either.
            default = parse_quantity(limits["default"].get(kind, limits["max"][kind]))
            limit = amount(resources[f"{key}Limit"]) if f"{key}Limit" in resources else default
            assert request <= limit <= most, f"{name}: {kind} {request} of {limit}"
            assert request <= parse_quantity(quota["spec"]["hard"][f"requests.{kind}"]), name


@pytest.mark.parametrize("path", ["k8s/base/runs/rayjob.yaml", "k8s/overlays/prod/rayjob.yaml"])
@pytest.mark.parametrize("gpus", [0, 2])
def test_the_rayjob_that_the_launcher_submits_fits_its_schema(project: Path, path: str, gpus: int):
    pytest.importorskip("kubernetes_validate")
    request = JobRequest(
        run_id="2f6c8a", task="pretrain", image="registry.example.com/amlp/train:1", gpus=gpus, workers=4,
        entrypoint=["python", "-m", "amlp.cluster.stage", "pretrain"], node_selector={"pool": "gpu"}, queue="amlp",
        tolerations=[{"key": "spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}],
    )  # fmt: skip
    job = build(load_template(project / path), request)
    check_schema(job)
    assert job["metadata"]["name"] == request.name
    assert [check.__name__ for check in (pods, writable, mounts) if check([job])] == []


def test_overlays_carry_their_template(dev: list[Object], prod: list[Object], project: Path):
    for objects, path in ((dev, "k8s/base/runs/rayjob.yaml"), (prod, "k8s/overlays/prod/rayjob.yaml")):
        assert data(objects, "amlp-rayjob") == {"rayjob.yaml": (project / path).read_text(encoding="utf-8")}


def test_the_ray_version_is_the_one_that_the_image_has(objects: list[Object], project: Path):
    lock = (project / "requirements-train.lock").read_text(encoding="utf-8")
    found = re.search(r"^ray(?:\[[^]]*\])?==([\d.]+)", lock, flags=re.MULTILINE)
    assert found
    for rayjob in of_kind(objects, "RayJob"):
        assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == found[1]


def test_prods_own_images_name_a_commit(prod: list[Object]):
    images = {container["image"] for name, container in containers(prod) if name.startswith("Deployment")}
    assert images
    assert all(re.search(r"(:[0-9a-f]{40}|@sha256:[0-9a-f]{64})$", image) for image in images)


def test_the_schema_of_rayjobs_is_kuberays():
    if not CRD.is_file():
        pytest.skip("KubeRay's custom resource definition is not beside this checkout")
    assert json.loads(RAYJOB_SCHEMA.read_text(encoding="utf-8")) == make_rayjob_schema()
