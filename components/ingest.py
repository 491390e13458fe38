"""Component of stage `ingest`."""

from kfp.dsl import Dataset, Output

from components.common import stage


@stage
def ingest(params: str, data_uri: str, data_md5: str, git_commit: str, cases: Output[Dataset]) -> str:
    """Read the source into images, masks and a manifest; return their MD5 and counts as JSON.

    Every other task reads what comes out here, and a task whose input is new runs anew. So it is enough that this
    one's cache key names the data and the code.

    Args:
        data_uri: of the images in DVC's remote, as `pull_data` finds it; empty for generated images.
    """
    import json
    import tempfile
    from pathlib import Path

    from amlp.data.ingest import ingest
    from amlp.data.privacy import Pseudonyms
    from amlp.data.versions import fetch_version
    from amlp.environment import check_code
    from amlp.files import read_json
    from amlp.params import parse_params
    from amlp.registry.lineage import folder_md5

    check_code(git_commit)
    settings = parse_params(json.loads(params), "ingest_params")
    source = settings.ingest
    with tempfile.TemporaryDirectory() as temporary:
        if data_uri:
            images = Path(temporary, "images")
            fetch_version(data_uri, data_md5, images)
            source = source.model_copy(update={"path": str(images)})
        ingest(params=source, seed=settings.seed, out=Path(cases.path), pseudonyms=Pseudonyms.of_environment())
    cases.metadata.update(data_uri=data_uri, data_md5=data_md5, git_commit=git_commit)
    # For `register`, which then need not fetch the images.
    return json.dumps({"md5": folder_md5(Path(cases.path)), "summary": read_json(Path(cases.path, "summary.json"))})
