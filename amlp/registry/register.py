"""Stage `register`: one MLflow run for the pipeline, one below it for each stage, and a version of both models.

Each call makes new runs and new versions, also for content that is registered already: DVC doesn't repeat an
unchanged stage, and versions of equal content are known by their tag `model_sha256`.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import amlp
from amlp.errors import UserError
from amlp.evaluation.summary import Summary
from amlp.files import read_json, sha256, write_json
from amlp.layout import EncoderFolder, Folder, RunFolder
from amlp.params import Params
from amlp.registry.card import CARDS, make_card, write_card
from amlp.registry.lineage import Lineage, collect_lineage
from amlp.registry.model_input import example_input
from amlp.registry.registration import RegisteredLineage, RegisteredModel, Registration
from amlp.registry.runlog import SYSTEM_METRICS, RunLog
from amlp.registry.tracking import (
    child_run,
    connect,
    import_mlflow,
    mlflow_uri,
    parent_run,
    resolve_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, Schema

logger = logging.getLogger(__name__)

# What loading and running either model imports; the versions are those it was trained with. MONAI is left out: only the
# U-Net needs it, which a pipeline can't register, because it takes no encoder.
REQUIREMENTS = (
    "imagecodecs", "mlflow", "numpy", "pandas", "pillow", "scipy", "tifffile", "timm", "torch", "torchvision",
)  # fmt: skip
CANDIDATE = "candidate"


@dataclass(frozen=True)
class _Stage:
    """A stage's folder under the root, its sections of the parameters, and which of its files a run shows."""

    folder: Callable[[RunFolder], Folder]
    sections: tuple[str, ...]
    files: tuple[str, ...]


# No file here names a patient: cases go by their ids. The manifest, with its pseudonyms and paths, is not among them.
_TRAINING_FILES = ("history.csv", "system.csv", "loading.json", "metrics.json")
STAGES = {
    "ingest": _Stage(lambda run: run.ingest, ("ingest",), ("summary.json",)),
    "validate": _Stage(lambda run: run.validate, ("validate",), ("bad_cases.csv", "expectations.json", "metrics.json")),
    "preprocess": _Stage(
        lambda run: run.shards, ("preprocess", "scores"), ("index.parquet", "stats.json", "metrics.json")
    ),
    "pretrain": _Stage(
        lambda run: run.encoder,
        ("encoder", "pretrain"),
        ("history.csv", "diagnostics.csv", "steps.csv", "system.csv", "metrics.json", "pictures"),
    ),
    "finetune": _Stage(lambda run: run.segmenter, ("encoder", "finetune"), _TRAINING_FILES),
    "scratch": _Stage(lambda run: run.scratch, ("encoder", "finetune"), _TRAINING_FILES),
    "evaluate": _Stage(
        lambda run: run.evaluation,
        ("evaluate",),
        ("cases.csv", "summary.json", "metrics.json", "dsc_histogram.csv", "overlays"),
    ),
}


def register(
    *, params: Params, root: Path, data_md5: str | None = None, tags: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Record the pipeline's run in MLflow and register both models.

    The alias `candidate` comes last, when a version is complete with its tags. Who is champion, the gate decides.

    Args:
        params: of the run; `register.tracking_uri` may be a SQLite file relative to `root`.
        root: folder with the stages' outputs; registration.json is written into it.
        data_md5: DVC's MD5 of the data, where `root` holds no dvc.lock with it; else the folder is hashed.
        tags: for the run, besides the lineage.

    Returns:
        The content of registration.json.

    Raises:
        ListedError: outputs of earlier stages are missing.
        UserError: MLflow can't be reached, or the evaluation is not of the test split.
    """
    run = RunFolder(root)
    run.require(
        run.ingest.summary, run.shards.index, run.encoder.weights, run.segmenter.weights, run.evaluation.summary,
        stage="register",
    )  # fmt: skip
    settings = params.register_
    summary = Summary.read(run.evaluation.summary)
    if (split := summary.test.split) != "test":
        raise UserError(
            f"{run.evaluation.summary}: scores on the split {split!r}, expected the test split's; run `amlp evaluate`."
        )
    lineage = collect_lineage(params=params, root=root, test_hash=summary.test.hash, data_md5=data_md5)

    address = mlflow_uri(settings.tracking_uri)
    with connect(resolve_uri(address, root)) as client:
        name = f"amlp {lineage.params_hash[:8]}"
        run_tags = {**(tags or {}), **lineage.tags()}
        if lineage.git_commit != "unknown":
            # MLflow's own name for it, which its pages show.
            run_tags["mlflow.source.git.commit"] = lineage.git_commit
        with parent_run(client, experiment=settings.experiment, name=name, tags=run_tags) as run_id:
            logger.info(f"MLflow: run {run_id} in experiment {settings.experiment!r} at {address}")
            log = RunLog(client, run_id)
            values = params.model_dump(by_alias=True)
            log.parameters(values)
            log.figures(_headline(summary))
            client.log_dict(run_id, values, "params.json")
            log.files([run.lock])
            stage_runs = _log_stages(client, parent=run_id, root=root, values=values, lineage=lineage)
            encoder, segmenter = _register_models(
                client, run_id, params=params, root=root, summary=summary, lineage=lineage
            )
            for kind, model in (("encoder", encoder), ("segmenter", segmenter)):
                card = make_card(
                    kind=kind, model=model, encoder=encoder if kind == "segmenter" else None, params=params, root=root,
                    summary=summary, lineage=lineage, tags=tags or {}, run_id=run_id,
                )  # fmt: skip
                with tempfile.TemporaryDirectory() as folder:
                    write_card(Path(folder), card, root=root, tracking_uri=address)
                    client.log_artifacts(run_id, folder, f"{CARDS}/{kind}")
            for model in (encoder, segmenter):
                client.set_registered_model_alias(model.name, CANDIDATE, model.version)

        registration = Registration(
            tracking_uri=address,
            experiment=settings.experiment,
            parent_run_id=run_id,
            stage_runs=stage_runs,
            encoder=replace(encoder, aliases=(CANDIDATE,)),
            segmenter=replace(segmenter, aliases=(CANDIDATE,)),
            lineage=RegisteredLineage(**asdict(lineage), encoder_version=encoder.version),
        ).as_dict()
        write_json(run.registration, registration)
    for model in (encoder, segmenter):
        logger.info(f"Registered {model.name} version {model.version}: {CANDIDATE}")
    logger.info(f"Wrote {run.registration}")
    return registration


def _headline(summary: Summary) -> dict[str, Any]:
    """Each model's figures with the ends of their intervals, and the paired differences."""
    figures: dict[str, Any] = {}
    for name, scores in {**summary.models, **summary.paired}.items():
        for figure, score in scores.items():
            figures[f"test/{name}/{figure}"] = score.mean
            figures[f"test/{name}/{figure}_low"] = score.low
            figures[f"test/{name}/{figure}_high"] = score.high
    return figures


def _log_stages(
    client: MlflowClient, *, parent: str, root: Path, values: Mapping[str, Any], lineage: Lineage
) -> dict[str, str]:
    """Write a run for each stage; the run from scratch is optional."""
    runs = {}
    for name, stage in STAGES.items():
        folder = stage.folder(RunFolder(root)).path
        if not folder.is_dir():
            continue
        with child_run(client, parent=parent, name=name, tags={"stage": name, **lineage.tags()}) as log:
            runs[name] = log.run_id
            log_outputs(log, stage=name, folder=folder, values=values)
            _log_dataset(log, stage=name, root=root, lineage=lineage)
    return runs


def log_outputs(log: RunLog, *, stage: str, folder: Path, values: Mapping[str, Any]) -> None:
    """Write what a stage left in `folder`, and the parameters among `values` that it depends on."""
    log.parameters({"seed": values["seed"]} | {section: values[section] for section in STAGES[stage].sections})
    files = EncoderFolder(folder)
    if files.metrics.is_file():
        log.figures(read_json(files.metrics))
    for curves in (files.history, files.diagnostics):
        if curves.is_file():
            log.curves(curves, step="epoch")
    if files.system.is_file():
        log.curves(files.system, names=SYSTEM_METRICS)
    log.files(folder / file for file in STAGES[stage].files)


def _log_dataset(log: RunLog, *, stage: str, root: Path, lineage: Lineage) -> None:
    """Name the data that a stage saw, by DVC's MD5; MLflow stores its columns and size, not its rows."""
    splits = {"pretrain": "train", "finetune": "train", "scratch": "train", "evaluate": "test"}
    mlflow = import_mlflow()
    from mlflow.entities import DatasetInput, InputTag

    index = pd.read_parquet(RunFolder(root).shards.index)
    context = {"pretrain": "pretraining", "finetune": "training", "scratch": "training", "evaluate": "testing"}
    if split := splits.get(stage):
        index = index[index["split"] == split]
    with warnings.catch_warnings():
        # Of the kind of source it takes a folder for, and of integers where a value could be missing one day.
        warnings.simplefilter("ignore", UserWarning)
        # An MLflow digest takes 36 characters, which is just what DVC's "<MD5>.dir" has.
        dataset = mlflow.data.from_pandas(
            index, source="data/ingest", name=f"ingest-{split}" if split else "ingest", digest=lineage.data_md5
        )._to_mlflow_entity()
    tags = [InputTag("mlflow.data.context", context.get(stage, stage))]
    log.client.log_inputs(log.run_id, datasets=[DatasetInput(dataset, tags)])


def _register_models(
    client: MlflowClient, run_id: str, *, params: Params, root: Path, summary: Summary, lineage: Lineage
) -> tuple[RegisteredModel, RegisteredModel]:
    """Log both models to the run and make a version of each, with tags and description, without aliases."""
    settings = params.register_
    encoder = _register_model(
        client,
        run_id,
        kind="encoder",
        name=settings.encoder_name,
        weights=RunFolder(root).encoder.weights,
        signature=_encoder_signature(),
        tags=lineage.tags(),
    )
    client.update_model_version(
        encoder.name,
        encoder.version,
        "ViT encoder, pre-trained without labels. Takes images of any size, returns a feature vector of "
        f"{params.encoder.dim} for each. `data/encoder.pt` within is what fine-tuning starts from.",
    )
    segmenter = _register_model(
        client,
        run_id,
        kind="segmenter",
        name=settings.segmenter_name,
        weights=RunFolder(root).segmenter.weights,
        signature=_segmenter_signature(),
        tags={**lineage.tags(), "encoder_name": encoder.name, "encoder_version": encoder.version},
    )
    dsc = summary.models["segmenter"]["dsc"]
    interval = "" if dsc.low is None else f" [{dsc.low:.3f}, {dsc.high:.3f}]"
    client.update_model_version(
        segmenter.name,
        segmenter.version,
        f"Lesion segmenter on {encoder.name} version {encoder.version}. Takes images of any size, returns for "
        "each a mask of the same size, its area, the presence of a lesion and an uncertainty. "
        f"Test DSC {dsc.mean:.3f}{interval} on {summary.test.cases} images.",
    )
    return encoder, segmenter


def _register_model(
    client: MlflowClient,
    run_id: str,
    *,
    kind: str,
    name: str,
    weights: Path,
    signature: ModelSignature,
    tags: Mapping[str, str],
) -> RegisteredModel:
    mlflow = import_mlflow()
    tags = {**tags, "model_sha256": sha256(weights)}
    run = client.get_run(run_id)
    # Made here, for MLflow would put it into the experiment that is active in this process, not into the run's.
    model = client.create_logged_model(
        run.info.experiment_id, name=kind, source_run_id=run_id, tags=tags, params=run.data.params
    )
    info = mlflow.models.Model.log(
        artifact_path=None,
        flavor=mlflow.pyfunc,
        model_id=model.model_id,
        run_id=run_id,
        loader_module=f"amlp.registry.{kind}_model",
        data_path=str(weights),
        code_paths=[str(Path(amlp.__file__).parent)],
        signature=signature,
        input_example=example_input(),
        # Given, for MLflow finds them out by loading the model in another process, which takes half a minute.
        pip_requirements=[f"{package}=={_public_version(package)}" for package in REQUIREMENTS],
        registered_model_name=name,
        # The version is created with these, so there is never one without.
        tags=tags,
    )
    version = str(info.registered_model_version)
    return RegisteredModel(name, version, tags["model_sha256"], model.model_id)


def _encoder_signature() -> ModelSignature:
    import numpy as np
    from mlflow.types import Schema, TensorSpec

    return _signature(Schema([TensorSpec(np.dtype("float32"), (-1,))]))


def _segmenter_signature() -> ModelSignature:
    """Name the fields of `SegmenterModel.predict`'s records, but `probability`, and its parameters."""
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    from amlp.registry.segmenter_model import PARAMS

    outputs = [
        ColSpec(AnyType(), "mask"),  # An array, or text that holds a PNG.
        *(ColSpec("long", name) for name in ("height", "width", "area")),
        *(ColSpec("double", name) for name in ("area_fraction", "presence", "uncertainty")),
    ]
    types = {str: "string", bool: "boolean"}
    params = [ParamSpec(name, types[type(default)], default) for name, default in PARAMS.items()]
    return _signature(Schema(outputs), ParamSchema(params))


def _signature(outputs: Schema, params: ParamSchema | None = None) -> ModelSignature:
    """Describe a model of any picture: `any` in."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    signature = ModelSignature(inputs=Schema([ColSpec(AnyType())]), outputs=outputs, params=params)
    # MLflow's own checks know tables and tensors of one rank, and refuse lists of images of different sizes. Marked
    # like this, as it marks the signatures of type-hinted models, it passes the input on; `read_images` checks it.
    signature._is_signature_from_type_hint = True
    return signature


def _public_version(package: str) -> str:
    """Without the local part, as in 2.8.0+cu128, which registries don't have."""
    return installed_version(package).split("+")[0]
