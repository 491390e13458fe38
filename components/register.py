"""Component of the stages `register` and `report`.

Two stages and one task: Kubeflow's record of a run has room for so much, and each of them reads all results.
"""

from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components.common import link_outputs, stage


@stage
def register(
    params: str,
    data_uri: str,
    data_md5: str,
    git_commit: str,
    share: str,
    data: str,
    validated: Input[Dataset],
    shards: Input[Dataset],
    encoder: Input[Model],
    segmenter: Input[Model],
    scratch: Input[Model],
    evaluation: Input[Artifact],
    registration: Output[Artifact],
    links: Output[HTML],
    page: Output[HTML],
) -> None:
    """Record the run and both models in MLflow, and write all results as one page.

    Args:
        data_uri: of the images in DVC's remote, for people to find them again, as data_md5; empty for generated images.
        data: JSON that `ingest` returns.
        share: s3://bucket/prefix to put the page in too, for readers without an account; empty for nowhere.
    """
    import json
    import os
    import shutil
    import tempfile
    from pathlib import Path

    from amlp.environment import STATE, check_code
    from amlp.files import write_json
    from amlp.layout import RunFolder
    from amlp.params import parse_params
    from amlp.registry.register import register
    from amlp.reporting.links import share_page, write_links
    from amlp.reporting.report import report

    check_code(git_commit)
    # Nothing here could be asked where no image says it.
    os.environ["AMLP_GIT_COMMIT"] = git_commit
    settings = parse_params(json.loads(params), "params")
    source = {"source_uri": data_uri, "source_md5": data_md5}
    source = {name: value for name, value in source.items() if value}
    with tempfile.TemporaryDirectory() as root:
        run = RunFolder(Path(root))
        link_outputs(
            {
                run.validate: validated.path,
                run.shards: shards.path,
                run.encoder: encoder.path,
                run.segmenter: segmenter.path,
                run.scratch: scratch.path,
                run.evaluation: evaluation.path,
            },
        )
        ingested = json.loads(data)
        write_json(run.ingest.summary, ingested["summary"])
        written = run.registration
        # A further try, as when the page could not be shared, registers no second version.
        earlier = Path(os.environ.get(STATE, root), "registered.json")
        if earlier.is_file():
            shutil.copy(earlier, written)
        else:
            # Not the images' commit, which differs where they do not; the run's outcome is recorded with it.
            found = register(params=settings, root=Path(root), data_md5=ingested["md5"], tags=source)
            write_json(written, {**found, "source": {**source, "git_commit": git_commit}})
            shutil.copy(written, earlier)
        write_links(Path(links.path), written)
        # The MLflow run gets the page under its file's name, and an artifact's own file has none that says HTML.
        html = run.report
        report(params=settings, root=Path(root), out=html)
        if share:
            share_page(html, uri=share, registration=written)
        shutil.copy(html, page.path)
        # Last: who has it may rely on all of the above.
        shutil.copy(written, registration.path)
