"""Where a segmenter's weights come from: a file, or a version in MLflow."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from amlp.errors import UserError
from amlp.files import sha256
from amlp.layout import SegmenterFolder
from amlp.registry.tracking import connect, import_mlflow, mlflow_uri, resolve_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "models:/amlp-segmenter@champion"
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
        file = SegmenterFolder(Path(model)).weights if Path(model).is_dir() else Path(model)
        if not file.is_file():
            raise UserError(f"{model}: no such file; expected segmenter.pt, its folder, or an address as {CHAMPION}.")
        yield Weights(file, str(file), sha256(file))
        return
    if not (parts := _ADDRESS.fullmatch(model)):
        raise UserError(f"{model}: expected models:/NAME@ALIAS or models:/NAME/VERSION.")
    uri = resolve_uri(mlflow_uri(given=tracking_uri), Path())
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
        file = fetch_segmenter(found, Path(folder))
        yield Weights(file, f"{found.name} version {found.version}", found.tags["model_sha256"])


def fetch_segmenter(version: ModelVersion, folder: Path) -> Path:
    """Fetch a registered segmenter's weights, and check that they are what was registered; within `connect`.

    Args:
        version: of MLflow.
        folder: to download into; may be absent.

    Returns:
        The weights' file below the folder.

    Raises:
        UserError: the version holds no segmenter, or another file than was registered.
    """
    mlflow = import_mlflow()
    name, address = f"{version.name} version {version.version}", f"models:/{version.name}/{version.version}"
    folder.mkdir(exist_ok=True)
    # By the address that `connect` sets for the process: the client's own does not reach the registry's part.
    root = Path(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=str(folder)))
    expected = SegmenterFolder(root).weights.name
    files = list(root.rglob(expected))
    if len(files) != 1:
        raise UserError(f"{name}: holds {len(files)} files {expected}, expected one; is it a segmenter?")
    if (digest := sha256(files[0])) != (registered := version.tags.get("model_sha256")):
        raise UserError(f"{name}: {files[0].name} has SHA-256 {digest}, registered was {registered}.")
    return files[0]
