"""The training pipeline, with the stages and edges of dvc.yaml: from a version of the images to two registered models,
and to a champion if the gate says so.

The pipeline's annotations are read when it is defined: no `from __future__ import annotations` here.
"""

from kfp import dsl

from components.evaluate import evaluate
from components.finetune import finetune, scratch
from components.gate import gate, promote
from components.ingest import ingest
from components.preprocess import preprocess
from components.pretrain import pretrain
from components.pull_data import pull_data
from components.record_outcome import record_outcome
from components.register import register
from components.report import report
from components.validate import validate
from pipelines.pods import Pod, on_gpu, place

_PODS = {
    "ingest": Pod(cpu="2", memory="8Gi", hours=6),
    "validate": Pod(memory="4Gi"),
    "preprocess": Pod(cpu="2", memory="16Gi", hours=6),
    "evaluate": Pod(cpu="2", memory="8Gi", hours=6),
    "register": Pod(memory="4Gi"),
    "report": Pod(memory="4Gi"),
    "gate": Pod(cpu="2", memory="8Gi", hours=6),
}


@dsl.pipeline(name="amlp-training")
def training(
    ingest_params: str,
    validate_params: str,
    preprocess_params: str,
    pretrain_params: str,
    finetune_params: str,
    evaluate_params: str,
    params: str,
    git_commit: str,
    data_repo: str = "",
    data_rev: str = "",
    data_path: str = "",
    cluster: str = "{}",
    share: str = "",
    training_cpu: str = "4",
    training_memory: str = "24Gi",
    gpus: str = "0",
    node_selector: dict = {},  # noqa: B006 - Kubeflow reads the default
    tolerations: list = [],  # noqa: B006
) -> None:
    """Pre-train, fine-tune, evaluate and register a lesion segmenter, and make it the champion if it may be.

    Args:
        ingest_params: JSON of the parameters of stage ingest; `pipeline_arguments` makes this and the next ones.
        validate_params: JSON of the parameters of stage validate.
        preprocess_params: JSON of the parameters of stage preprocess.
        pretrain_params: JSON of the parameters of stage pretrain.
        finetune_params: JSON of the parameters of the stages finetune and scratch.
        evaluate_params: JSON of the parameters of stage evaluate.
        params: JSON of all parameters, for the stages register and report.
        git_commit: of the code, so that other code runs anew; with "-dirty" behind it when files differ from it.
        data_repo: git address of the DVC repository that holds the images; empty for generated ones.
        data_rev: its commit; a branch where a schedule looks anew each time.
        data_path: folder of the images in it.
        cluster: JSON of `amlp.cluster.training.ClusterParams`: where trainings run, and on what.
        share: s3://bucket/prefix that gets the report too; empty for nowhere.
        training_cpu: of a training's own pod; little where a Ray cluster trains, as the next ones.
        training_memory: likewise.
        gpus: likewise.
        node_selector: labels of the nodes for such a pod.
        tolerations: taints of nodes that such a pod bears.
    """
    last = place(record_outcome(params=params, data_rev=data_rev, git_commit=git_commit), Pod())
    # It says how this run ended, whatever an earlier one did.
    last.set_caching_options(False)
    with dsl.ExitHandler(last, name="training"):
        data = place(pull_data(repo=data_repo, rev=data_rev, path=data_path), Pod())
        uri, md5 = data.outputs["uri"], data.outputs["md5"]
        ingested = ingest(params=ingest_params, data_uri=uri, data_md5=md5, git_commit=git_commit)
        cases = ingested.outputs["cases"]
        validation = validate(params=validate_params, cases=cases)
        validated = validation.outputs["validated"]
        packed = preprocess(params=preprocess_params, cases=cases, validated=validated)
        shards = packed.outputs["shards"]

        # Also an argument, for kfp 2.17 does not hand inputs into a group that only its tasks' resources name.
        pod = f'{{"cpu": "{training_cpu}", "memory": "{training_memory}", "gpus": "{gpus}"}}'
        where = {"cluster": cluster, "pod": pod}
        pretraining = pretrain(params=pretrain_params, shards=shards, **where)
        encoder = pretraining.outputs["encoder"]
        finetuned = finetune(params=finetune_params, shards=shards, encoder=encoder, **where)
        compared = scratch(params=finetune_params, shards=shards, **where)
        for task in (pretraining, finetuned, compared):
            # Longer than a Ray cluster may take, so that it is the launcher that ends it and tells why.
            place(task, Pod(cpu=training_cpu, memory=training_memory, hours=30))
            on_gpu(task, gpus=gpus, node_selector=node_selector, tolerations=tolerations)
        models = {"segmenter": finetuned.outputs["segmenter"], "scratch": compared.outputs["segmenter"]}
        evaluated = evaluate(params=evaluate_params, cases=cases, shards=shards, **models)

        found = {"validated": validated, "shards": shards, "encoder": encoder, **models}
        found["evaluation"] = evaluated.outputs["evaluation"]
        registered = register(
            params=params,
            data_uri=uri,
            data_md5=md5,
            git_commit=git_commit,
            cases=cases,
            **found,
        )
        reported = report(params=params, share=share, registration=registered.outputs["registration"], **found)
        registration = registered.outputs["registration"]
        judged = gate(params=params, cases=cases, shards=shards, registration=registration, **models)
        for task in (ingested, validation, packed, evaluated, registered, reported, judged):
            place(task, _PODS[task.name])
        with dsl.If(judged.outputs["outcome"] == "promote", name="promote"):
            place(promote(decision=judged.outputs["decision"], registration=registration), Pod())
