"""Component of stage `ingest`."""

from kfp.dsl import Dataset, Output

from components.common import stage


@stage
def ingest(params: str, data_md5: str, git_commit: str, cases: Output[Dataset]) -> None:
    """Read the source into images, masks and a manifest.

    Every other task reads what comes out here, and a task whose input is new runs anew. So it is enough that this
    one's cache key names the data and the code.
    """
    import json
    from pathlib import Path

    from amlp.data.ingest import ingest
    from amlp.environment import quiet
    from amlp.params import parse_params

    quiet()
    settings = parse_params(json.loads(params), "ingest_params")
    ingest(params=settings.ingest, seed=settings.seed, out=Path(cases.path))
    cases.metadata.update(data_md5=data_md5, git_commit=git_commit)
