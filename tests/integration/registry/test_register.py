from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from amlp.cli import main
from amlp.data.pictures import write_png
from amlp.errors import UserError
from amlp.files import read_json, sha256
from amlp.models.predictor import Predictor
from amlp.params import Params, parse_params
from amlp.registry.register import STAGES, register
from amlp.registry.tracking import connect, resolve_uri
from amlp.registry.weights import segmenter_weights
from amlp.reporting.report import report
from tests.support.stage_outputs import write_stage_outputs

PARAMS = Params()
MD5 = "0123456789abcdef0123456789abcdef.dir"


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: the migrations of a new one take longer than a test."""
    folder = tmp_path_factory.mktemp("database")
    with connect(f"sqlite:///{folder}/mlflow.db"):
        pass
    return folder / "mlflow.db"


@pytest.fixture(scope="module")
def make_root(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    def make() -> Path:
        root = tmp_path_factory.mktemp("root")
        write_stage_outputs(root, epochs=3)
        shutil.copy(database, root / "mlflow.db")
        return root

    return make


@pytest.fixture(scope="module")
def registered(make_root: Callable[[], Path]) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Root, first and second registration of the same outputs."""
    root = make_root()
    folder = os.getcwd()
    os.chdir(root)
    try:
        first = register(params=PARAMS, root=root, data_md5=MD5)
        second = register(params=PARAMS, root=root, data_md5=MD5)
    finally:
        os.chdir(folder)
    return root, first, second


def client_of(root: Path) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")


def test_each_registration_makes_a_version_of_both_models(registered: tuple[Path, Any, Any]) -> None:
    root, first, second = registered
    client = client_of(root)
    for part, name in (("encoder", "amlp-encoder"), ("segmenter", "amlp-segmenter")):
        assert (first[part]["version"], second[part]["version"]) == ("1", "2")
        assert first[part]["aliases"] == second[part]["aliases"] == ["candidate"]
        aliases = client.get_registered_model(name).aliases
        # Who is champion, the gate decides.
        assert {alias: str(version) for alias, version in aliases.items()} == {"candidate": "2"}
    assert read_json(root / "registration.json") == second


def test_versions_carry_their_lineage(registered: tuple[Path, Any, Any]) -> None:
    root, _, second = registered
    client = client_of(root)
    for part in ("encoder", "segmenter"):
        version = client.get_model_version(second[part]["name"], second[part]["version"])
        expected = {
            "data_md5": MD5,
            "params_hash": PARAMS.digest(),
            "test_hash": "a" * 64,
            "git_commit": second["lineage"]["git_commit"],
            "model_sha256": sha256(root / "models" / part / f"{part}.pt"),
        }
        assert expected.items() <= version.tags.items()
        assert version.tags["git_dirty"] in ("true", "false", "unknown")
        assert version.run_id == second["parent_run_id"]
        assert version.description
    assert version.tags["encoder_version"] == second["encoder"]["version"] == "2"
    assert client.get_run(second["parent_run_id"]).data.tags["data_md5"] == MD5


def test_parent_run_has_a_child_for_each_stage(registered: tuple[Path, Any, Any]) -> None:
    root, first, second = registered
    client = client_of(root)
    experiment = client.get_experiment_by_name("amlp")
    assert experiment.artifact_location == (root / "mlartifacts").resolve().as_uri()
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 2 * (1 + len(STAGES)) and {run.info.status for run in runs} == {"FINISHED"}
    children = {r.info.run_name: r for r in runs if r.data.tags.get("mlflow.parentRunId") == second["parent_run_id"]}
    assert {name: run.info.run_id for name, run in children.items()} == second["stage_runs"]
    assert set(children) == set(STAGES)
    assert set(first["stage_runs"].values()).isdisjoint(second["stage_runs"].values())

    pretrain = children["pretrain"]
    assert pretrain.data.params["pretrain.amr.end"] == "0.75"
    assert not any(key.startswith("finetune") for key in pretrain.data.params)
    history = pd.read_csv(root / "models/encoder/history.csv")
    logged = client.get_metric_history(pretrain.info.run_id, "ratio")
    assert [(m.step, m.value) for m in logged] == list(zip(history["epoch"], history["ratio"], strict=True))
    moments = [m.timestamp for m in logged]
    assert np.diff(moments).tolist() == [1500, 1500], "the time axis is the training's"
    assert children["evaluate"].data.metrics["segmenter_dsc"] == 0.83
    assert pretrain.data.metrics["probe_auc_untrained"] == 0.61
    probed = {m.step: m.value for m in client.get_metric_history(pretrain.info.run_id, "probe_auc")}
    assert [probed[epoch] for epoch in history["epoch"]] == pytest.approx([0.6, 0.7, 0.8])
    assert children["finetune"].data.metrics["system/process_cpu_percentage"] == 190.0

    parent = client.get_run(second["parent_run_id"])
    assert parent.data.metrics["test/segmenter/dsc_low"] == pytest.approx(0.80)
    assert parent.data.params["finetune.lr"] == str(PARAMS.finetune.lr)


def test_data_are_named_by_their_md5(registered: tuple[Path, Any, Any]) -> None:
    root, _, second = registered
    client = client_of(root)
    for stage, name in (("ingest", "ingest"), ("pretrain", "ingest-train"), ("evaluate", "ingest-test")):
        (data,) = client.get_run(second["stage_runs"][stage]).inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == (name, MD5)


def test_artifacts_are_there_and_name_no_patient(registered: tuple[Path, Any, Any]) -> None:
    root, _, second = registered
    client = client_of(root)

    def listed(stage: str, folder: str | None = None) -> set[str]:
        return {item.path for item in client.list_artifacts(second["stage_runs"][stage], folder)}

    assert listed("pretrain") >= {"history.csv", "diagnostics.csv", "metrics.json", "pictures"}
    assert listed("pretrain", "pictures") == {f"pictures/{n}.png" for n in ("masks", "scores", "reconstructions")}
    assert listed("evaluate") >= {"cases.csv", "summary.json", "overlays"}
    for file in (root / "mlartifacts").rglob("*"):
        assert file.name != "manifest.parquet"
        if file.suffix == ".parquet":
            assert "patient" not in pd.read_parquet(file).columns


def test_nothing_is_written_elsewhere(registered: tuple[Path, Any, Any]) -> None:
    root = registered[0]
    written = {"mlflow.db", "mlartifacts", "registration.json"}
    assert {path.name for path in root.iterdir()} - {"data", "models", "evaluation"} == written


def test_a_version_in_a_fresh_process_gives_the_predictor_s_masks(
    registered: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    root = registered[0]
    random = np.random.default_rng(0)
    images = [
        random.integers(0, 256, (61, 45), dtype=np.uint8),
        random.integers(0, 65536, (50, 90), dtype=np.uint16),
        random.integers(0, 256, (38, 52, 3), dtype=np.uint8),
    ]
    predictor = Predictor.load(root / "models/segmenter/segmenter.pt")
    for number, image in enumerate(images):
        np.save(tmp_path / f"image{number}.npy", image)
        write_png(tmp_path / f"image{number}.png", image)
    program = """
import sys
from pathlib import Path
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/amlp-segmenter@candidate")
import amlp
print(amlp.__file__)
images = [np.load(f"image{n}.npy") for n in range(3)]
for n, (image, listed) in enumerate(zip(images, model.predict(images))):
    mask = model.predict(image)["mask"]
    assert (mask == listed["mask"]).all()
    assert (mask == model.predict(Path(f"image{n}.png").read_bytes())["mask"]).all()
    np.save(f"mask{n}.npy", mask)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, resolve_uri("sqlite:///mlflow.db", root)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (root / "mlartifacts").resolve() in Path(done.stdout.strip()).parents, "the model brings its own code"
    for number, image in enumerate(images):
        mask = np.load(tmp_path / f"mask{number}.npy")
        assert mask.dtype == np.uint8 and 0 < mask.mean() < 1
        np.testing.assert_array_equal(mask, predictor.mask(image))


def answer_of(model: Any, inputs: Any, params: dict[str, Any] | None = None) -> Any:
    """What a scoring server does with a request."""
    from mlflow.pyfunc.scoring_server import invocations

    request = json.dumps({"inputs": inputs} | ({"params": params} if params else {}))
    answer = invocations(request, "application/json", model, model.metadata.get_input_schema())
    assert answer.status == 200
    return json.loads(answer.response)["predictions"]


def pixels_of(text: str) -> Any:
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))))


def test_models_answer_what_a_scoring_server_gets(registered: tuple[Path, Any, Any], tmp_path: Path) -> None:
    import mlflow

    root = registered[0]
    image = np.random.default_rng(1).integers(0, 256, (40, 57), dtype=np.uint8)
    write_png(tmp_path / "image.png", image)
    text = base64.b64encode((tmp_path / "image.png").read_bytes()).decode()
    expected = Predictor.load(root / "models/segmenter/segmenter.pt").segment(image)
    with connect(resolve_uri("sqlite:///mlflow.db", root)):
        model = mlflow.pyfunc.load_model("models:/amlp-segmenter@candidate")
        for inputs in ([text], [image.tolist()]):
            (record,) = answer_of(model, inputs)
            np.testing.assert_array_equal(pixels_of(record["mask"]) / 255, expected.mask)
            assert record["area"] == expected.mask.sum() and "probability" not in record
        assert set(record) == set(model.metadata.get_output_schema().input_names())
        record = answer_of(model, text, {"encoding": "array", "probability": True})
        np.testing.assert_array_equal(record["mask"], expected.mask)
        np.testing.assert_allclose(record["probability"], expected.probability, rtol=1e-6)
        for name in ("amlp-segmenter", "amlp-encoder"):
            model = mlflow.pyfunc.load_model(f"models:/{name}@candidate")
            assert model.metadata.signature.inputs is not None and model.metadata.signature.outputs is not None
            (answer,) = model.predict(model.input_example)
            if name == "amlp-encoder":
                assert answer.shape == (16,)
            else:
                assert (answer["height"], answer["width"]) == (96, 128)
                assert pixels_of(answer["mask"]).shape == (96, 128)


def test_a_scoring_server_says_what_is_wrong_and_repeats_no_picture(registered: tuple[Path, Any, Any]) -> None:
    import mlflow

    with connect(resolve_uri("sqlite:///mlflow.db", registered[0])):
        for name in ("amlp-segmenter", "amlp-encoder"):
            model = mlflow.pyfunc.load_model(f"models:/{name}@candidate")
            picture = base64.b64encode(bytes(2000)).decode()
            with pytest.raises(mlflow.MlflowException) as caught:
                answer_of(model, [picture])
            assert caught.value.get_http_status_code() == 400
            said = json.loads(caught.value.serialize_as_json())["message"]
            assert said.startswith("model input 0: no picture") and len(said) < 200


def test_a_registered_model_holds_nothing_pickled_but_tensors(registered: tuple[Path, Any, Any]) -> None:
    import mlflow
    import torch

    with connect(resolve_uri("sqlite:///mlflow.db", registered[0])):
        for name in ("encoder", "segmenter"):
            folder = Path(mlflow.artifacts.download_artifacts(f"models:/amlp-{name}@candidate"))
            flavour = mlflow.models.Model.load(folder).flavors["python_function"]
            assert flavour["loader_module"] == f"amlp.registry.{name}_model" and "python_model" not in flavour
            files = [path for path in folder.rglob("*") if path.is_file() and "code" not in path.parts]
            assert [path.name for path in files if path.suffix in (".pkl", ".pickle", ".joblib", ".pt")] == [
                f"{name}.pt"
            ]
            # Refuses whatever is no tensor, number, text or container of such.
            assert torch.load(folder / flavour["data"], weights_only=True)["kind"] == f"amlp-{name}"
            loads = [line for file in (folder / "code").rglob("*.py") for line in file.read_text().splitlines()
                     if "torch.load(" in line]  # fmt: skip
            assert loads and all("weights_only=True" in line for line in loads)


def test_predict_takes_the_registered_weights_and_no_others(
    make_root: Callable[[], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_root()
    uri = f"sqlite:///{root}/mlflow.db"
    params = parse_params({"register": {"tracking_uri": uri}}, "test")
    registration = register(params=params, root=root, data_md5=MD5)
    out = tmp_path / "out"
    command = ["predict", str(root / "data/ingest/images"), str(out), "--tracking-uri", uri]
    assert main(command) == 2
    assert "@champion: not found" in capsys.readouterr().err
    assert main([*command, "--model", "models:/amlp-segmenter@candidate"]) == 0
    summary = read_json(out / "summary.json")
    assert (summary["model"], summary["images"]) == ("amlp-segmenter version 1", 24)
    assert summary["model_sha256"] == registration["segmenter"]["model_sha256"]

    for address in ("models:/amlp-segmenter@nobody", "models:/amlp-segmenter/7", "models:/nothing@champion"):
        with pytest.raises(UserError, match=f"{address}: not found at"), segmenter_weights(address, uri):
            pass
    with pytest.raises(UserError, match="holds 0 files"), segmenter_weights("models:/amlp-encoder@candidate", uri):
        pass
    [stored] = (root / "mlartifacts").rglob("segmenter.pt")
    stored.write_bytes(b"something else")
    with pytest.raises(UserError, match="SHA-256"), segmenter_weights("models:/amlp-segmenter/1", uri):
        pass


def test_report_is_attached_to_the_run(registered: tuple[Path, Any, Any], tmp_path: Path) -> None:
    root, _, second = registered
    report(params=PARAMS, root=root, out=tmp_path / "report.html")
    assert "report.html" in {item.path for item in client_of(root).list_artifacts(second["parent_run_id"])}


def test_crash_leaves_no_alias_and_a_failed_run(make_root: Callable[[], Path]) -> None:
    root = make_root()
    # MLflow refuses this name, and so the second model fails after the first got its version.
    params = parse_params({"register": {"segmenter_name": "not/allowed"}}, "test")
    with pytest.raises(Exception, match="not/allowed"):
        register(params=params, root=root)
    client = client_of(root)
    assert not client.get_registered_model("amlp-encoder").aliases
    (version,) = client.search_model_versions("name='amlp-encoder'")
    assert version.tags["params_hash"] == params.digest()
    (run,) = (
        run
        for run in client.search_runs([client.get_experiment_by_name("amlp").experiment_id])
        if "mlflow.parentRunId" not in run.data.tags
    )
    assert run.info.status == "FAILED"
    assert not (root / "registration.json").exists()


def test_injected_run_is_used_and_left_open(make_root: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_root()
    uri = resolve_uri("sqlite:///mlflow.db", root)
    client = client_of(root)
    experiment = client.create_experiment("pipelines", artifact_location=(root / "elsewhere").as_uri())
    run = client.create_run(experiment)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    registration = register(params=PARAMS, root=root)
    assert registration["parent_run_id"] == run.info.run_id
    assert registration["tracking_uri"] == uri
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    assert client.get_experiment_by_name("amlp") is None
    assert len(client.search_runs([experiment])) == 1 + len(STAGES)
    assert os.environ["MLFLOW_TRACKING_URI"] == uri and os.environ["MLFLOW_RUN_ID"] == run.info.run_id
