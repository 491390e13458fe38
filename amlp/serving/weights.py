"""Where a segmenter's weights come from: a file, or a version in MLflow."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from amlp.errors import UserError
from amlp.files import sha256

CHAMPION = "models:/amlp-segmenter@champion"
LOCAL = "sqlite:///mlflow.db"
_FILE = "segmenter.pt"
_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>.+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Weights:
    """A segmenter's file, what to call the model, and the file's SHA-256."""

    file: Path
    name: str
    sha256: str


@contextmanager
def segmenter_weights(model: str, tracking_uri: str | None = None) -> Iterator[Weights]:
    """Find a segmenter's file; one from MLflow lies in a temporary folder until the block ends.

    Args:
        model: `segmenter.pt` or its folder, or `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: MLflow's; MLFLOW_TRACKING_URI if None, else mlflow.db in this folder.

    Raises:
        UserError: there is no such file or version, MLflow can't be reached, or the file is not what was registered.
    """
    if not model.startswith("models:"):
        file = Path(model, _FILE) if Path(model).is_dir() else Path(model)
        if not file.is_file():
            raise UserError(f"{model}: no such file; expected {_FILE}, its folder, or an address as {CHAMPION}.")
        yield Weights(file, str(file), sha256(file))
        return
    if not (parts := _ADDRESS.fullmatch(model)):
        raise UserError(f"{model}: expected models:/NAME@ALIAS or models:/NAME/VERSION.")
    from amlp.registry.tracking import connect, resolve_uri

    uri = resolve_uri(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or LOCAL, Path())
    if uri.startswith("sqlite:///") and not (database := Path(uri.removeprefix("sqlite:///"))).is_file():
        # MLflow would make an empty one.
        raise UserError(
            f"{model}: {database} not found; name MLflow's address (tracking_uri, --tracking-uri) or the weights' file."
        )
    with connect(uri) as client, tempfile.TemporaryDirectory() as folder:
        import mlflow

        try:
            found = (
                client.get_model_version_by_alias(parts["name"], parts["alias"])
                if parts["alias"]
                else client.get_model_version(parts["name"], parts["version"])
            )
        except mlflow.MlflowException as error:
            if error.get_http_status_code() in (401, 403):
                raise
            hint = "; `amlp promote` makes a champion, @candidate is the newest" if model.endswith("@champion") else ""
            raise UserError(f"{model}: not found at {uri}: {error}{hint}") from error
        name = f"{found.name} version {found.version}"
        address = f"models:/{found.name}/{found.version}"
        root = Path(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=folder))
        files = list(root.rglob(_FILE))
        if len(files) != 1:
            raise UserError(f"{model}: {name} holds {len(files)} files {_FILE}, expected one; is it a segmenter?")
        digest = sha256(files[0])
        if digest != (registered := found.tags.get("model_sha256")):
            raise UserError(f"{model}: {name} has SHA-256 {digest}, registered was {registered}.")
        yield Weights(files[0], name, digest)
