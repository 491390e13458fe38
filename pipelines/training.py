"""The training pipeline, with the stages and edges of dvc.yaml: from a version of the images to two registered models,
and to a champion if the gate says so.

The pipeline's annotations are read when it is defined: no `from __future__ import annotations` here.
"""

from collections.abc import Collection
from typing import Any

from kfp import dsl

from amlp.cluster.training import SETTINGS, ClusterParams
from components.evaluate import evaluate
from components.finetune import finetune, scratch
from components.gate import gate
from components.ingest import ingest
from components.preprocess import preprocess
from components.pretrain import pretrain
from components.pull_data import pull_data
from components.record_outcome import record_outcome
from components.register import register
from components.validate import validate
from pipelines.pods import launches, on_gpu, place
from pipelines.resources import Resources, TaskResources
from pipelines.runs import PIPELINE


def training_pipeline(
    cluster: ClusterParams | None = None,
    *,
    follow_data: bool = False,
    cached: bool = True,
    record: str = "",
    fresh: Collection[str] = (),
    resources: Resources | None = None,
) -> Any:
    """Return the training pipeline for one kind of cluster.

    What `cluster` says is fixed when the pipeline is compiled, and becomes part of its tasks and not of their inputs:
    a longer deadline, another queue or node pool must not make finished trainings new to the cache.

    Args:
        cluster: where trainings run, and on what.
        follow_data: look the data's version up in every run, for a schedule that follows a branch.
        cached: whether tasks may be taken from the cache. The client's own switch reaches no task within the exit
            handler's group.
        fresh: names of tasks that run anew, and with them those that read what they write; the others may come from the
            cache.
        resources: of each task's pod but the trainings' own, which `cluster` describes.
        record: where tasks record their errors, see `amlp.environment.RECORD`; empty for nowhere.
    """
    cluster, resources = cluster or ClusterParams(), resources or Resources()
    # GPUs are an input: a model trained on one is another than a model trained without.
    settings = cluster.model_dump_json(exclude={"gpus", "cpu", "memory"}, exclude_defaults=True)

    def put(task: dsl.PipelineTask, pod: TaskResources | None = None) -> dsl.PipelineTask:
        if not cached or task.name in fresh:
            task.set_caching_options(False)
        return place(task, pod or resources.of(task.name), record=record)

    @dsl.pipeline(name=PIPELINE)
    def training(
        ingest_params: str,
        validate_params: str,
        preprocess_params: str,
        pretrain_params: str,
        finetune_params: str,
        evaluate_params: str,
        gate_params: str,
        params: str,
        git_commit: str,
        data_repo: str = "",
        data_rev: str = "",
        data_path: str = "",
        share: str = "",
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
            gate_params: JSON of the gate's thresholds.
            params: JSON of all parameters, for the stages register and report.
            git_commit: of the code, so that other code runs anew; with "-dirty" behind it when files differ from it.
            data_repo: git address of the DVC repository that holds the images; empty for generated ones.
            data_rev: its commit; a branch where a schedule looks anew each time.
            data_path: folder of the images in it.
            share: s3://bucket/prefix that gets the report too; empty for nowhere.
            gpus: of a training's pod, or of each worker of its Ray cluster.
            node_selector: labels of the nodes for a training's pod.
            tolerations: taints of nodes that such a pod tolerates.
        """
        last = put(record_outcome(params=params, data_rev=data_rev, git_commit=git_commit))
        # It says how this run ended, whatever an earlier one did.
        last.set_caching_options(False)
        with dsl.ExitHandler(last, name="training"):
            data = put(pull_data(repo=data_repo, rev=data_rev, path=data_path))
            if follow_data:
                # The cache would take the branch's name for the data.
                data.set_caching_options(False)
            uri, md5 = data.outputs["uri"], data.outputs["md5"]
            ingested = ingest(params=ingest_params, data_uri=uri, data_md5=md5, git_commit=git_commit)
            cases = ingested.outputs["cases"]
            validation = validate(params=validate_params, cases=cases)
            validated = validation.outputs["validated"]
            packed = preprocess(params=preprocess_params, cases=cases, validated=validated)
            shards = packed.outputs["shards"]

            pretraining = pretrain(params=pretrain_params, gpus=gpus, shards=shards)
            encoder = pretraining.outputs["encoder"]
            finetuned = finetune(params=finetune_params, gpus=gpus, shards=shards, encoder=encoder)
            compared = scratch(params=finetune_params, gpus=gpus, shards=shards)
            for task in (pretraining, finetuned, compared):
                put(task, _training_pod(cluster, resources))
                task.set_env_variable(SETTINGS, settings)
                if cluster.launcher == "rayjob":
                    launches(task)
                else:
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
                share=share,
                data=ingested.outputs["Output"],
                **found,
            )
            # The last of all, for it says that every other task succeeded.
            judged = gate(
                params=gate_params,
                data_rev=data_rev,
                cases=cases,
                shards=shards,
                scratch=models["scratch"],
                registration=registered.outputs["registration"],
            )
            for task in (ingested, validation, packed, evaluated, registered, judged):
                put(task)
            # Another champion since: the cache does not know of it.
            judged.set_caching_options(False)

    return training


def _training_pod(cluster: ClusterParams, resources: Resources) -> TaskResources:
    if cluster.launcher == "rayjob":
        # Longer than the Ray cluster may take, so that it is the launcher that ends it and says why.
        return resources.launcher.model_copy(update={"hours": cluster.deadline_hours + 1})
    return TaskResources(cpu=cluster.cpu, memory=cluster.memory, hours=cluster.deadline_hours)


training = training_pipeline()
