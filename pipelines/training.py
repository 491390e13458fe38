"""The training pipeline, with the stages and edges of dvc.yaml: from a source of images to two registered models.

The pipeline's annotations are read when it is defined: no `from __future__ import annotations` here.
"""

from kfp import dsl

from components.evaluate import evaluate
from components.finetune import finetune, scratch
from components.ingest import ingest
from components.preprocess import preprocess
from components.pretrain import pretrain
from components.register import register
from components.report import report
from components.validate import validate


@dsl.pipeline(name="amlp-training")
def training(
    ingest_params: str,
    validate_params: str,
    preprocess_params: str,
    pretrain_params: str,
    finetune_params: str,
    evaluate_params: str,
    params: str,
    data_md5: str,
    git_commit: str,
    state: str = "",
) -> None:
    """Pre-train, fine-tune, evaluate and register a lesion segmenter.

    Args:
        ingest_params: JSON of the parameters of stage ingest; `pipeline_arguments` makes this and the next ones.
        validate_params: JSON of the parameters of stage validate.
        preprocess_params: JSON of the parameters of stage preprocess.
        pretrain_params: JSON of the parameters of stage pretrain.
        finetune_params: JSON of the parameters of the stages finetune and scratch.
        evaluate_params: JSON of the parameters of stage evaluate.
        params: JSON of all parameters, for the stages register and report.
        data_md5: DVC's MD5 of the source, so that other bytes in the same place run anew; empty for generated images.
        git_commit: of the code, so that other code runs anew; with "-dirty" behind it when files differ from it.
        state: folder from which a killed training goes on, the same in every run; empty when no folder outlives a task.
    """
    ingested = ingest(params=ingest_params, data_md5=data_md5, git_commit=git_commit)
    cases = ingested.outputs["cases"]
    validated = validate(params=validate_params, cases=cases).outputs["validated"]
    shards = preprocess(params=preprocess_params, cases=cases, validated=validated).outputs["shards"]

    pretrained = pretrain(params=pretrain_params, state=state, shards=shards)
    encoder = pretrained.outputs["encoder"]
    finetuned = finetune(params=finetune_params, state=state, shards=shards, encoder=encoder)
    compared = scratch(params=finetune_params, state=state, shards=shards)
    models = {"segmenter": finetuned.outputs["segmenter"], "scratch": compared.outputs["segmenter"]}
    evaluated = evaluate(params=evaluate_params, cases=cases, shards=shards, **models)

    found = {"validated": validated, "shards": shards, "encoder": encoder, **models}
    found["evaluation"] = evaluated.outputs["evaluation"]
    registered = register(params=params, git_commit=git_commit, cases=cases, **found)
    report(params=params, registration=registered.outputs["registration"], **found)
