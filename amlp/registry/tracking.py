"""MLflow, as we use it: connecting, and writing a run's parameters, curves and files in few calls."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amlp.environment import PIPELINE_PAGES, PIPELINE_RUN, quiet
from amlp.errors import UserError, without_credentials
from amlp.registry.runlog import RunLog

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
# Where nothing else is named.
LOCAL = "sqlite:///mlflow.db"
RUN_TAG, PAGE_TAG = "pipeline_run", "pipeline_run_url"
_SETTINGS = {
    # A bar for each small file drowns what the stage has to say.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # As do two lines for each run.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Else a uv.lock in the working folder is copied into each model and taken for its requirements.
    "MLFLOW_UV_AUTO_DETECT": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    # Files go through the server. A server on S3 offers links that name S3 as it knows it itself, and a client of
    # another namespace, or outside of the cluster, waits for minutes for a host that it can't find.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
}


def import_mlflow() -> Any:
    """Import MLflow under our settings: no telemetry, no bars, no line for each database migration."""
    quiet()
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import logging

    import mlflow

    for name in ("mlflow.pyfunc", "mlflow.store.db.utils", "alembic.runtime.migration", "alembic.runtime.plugins"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def mlflow_uri(configured: str = LOCAL, *, given: str | None = None) -> str:
    """Say where MLflow is: as given on the command line, else by MLFLOW_TRACKING_URI, else as configured.

    The parameters name MLflow as a cluster sees it; the variable, which MLflow reads too, as seen from here.

    Args:
        configured: `register.tracking_uri`.
        given: of the command line.
    """
    return given or os.environ.get("MLFLOW_TRACKING_URI") or configured


def resolve_uri(tracking_uri: str, root: Path) -> str:
    """Make a SQLite file's path absolute; it starts from `root`."""
    if not tracking_uri.startswith(_SQLITE):
        return tracking_uri
    return f"{_SQLITE}{(root / tracking_uri.removeprefix(_SQLITE)).resolve()}"


@contextmanager
def connect(tracking_uri: str) -> Iterator[MlflowClient]:
    """Open a client, and point MLflow's global functions at the same place inside the block.

    Args:
        tracking_uri: as `resolve_uri` returns it.

    Raises:
        UserError: the address doesn't answer, isn't one that MLflow takes, or holds a password; the server does not
            know the user, or forbids something inside the block.
    """
    if (shown := without_credentials(tracking_uri)) != tracking_uri:
        raise UserError(
            f"register.tracking_uri or MLFLOW_TRACKING_URI: {shown}: the address must hold no user or password, for it "
            "is written down with the run; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead."
        )
    mlflow = import_mlflow()
    from requests import HTTPError  # type: ignore[import-untyped]

    # MLflow writes its address into the environment too, which would outlive the block and reach later stages.
    before, variable = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(tracking_uri)
    try:
        try:
            client = mlflow.MlflowClient(tracking_uri=tracking_uri)
            client.search_experiments(max_results=1)
        except Exception as error:  # From sqlalchemy's to requests', whatever lies behind the address.
            raise _refused(tracking_uri, error) or UserError(
                f"register.tracking_uri: {tracking_uri}: MLflow can't use it: {error}\n"
                "Expected sqlite:///FILE or the address of a running MLflow server."
            ) from error
        try:
            yield client
        except (mlflow.MlflowException, HTTPError) as error:  # The latter from files, which go past MLflow's records.
            if refused := _refused(tracking_uri, error):
                raise refused from error
            raise
    finally:
        mlflow.set_tracking_uri(before)
        if variable is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = variable


def _refused(tracking_uri: str, error: Exception) -> UserError | None:
    """Say what to do about a server's 401 or 403; None for other errors."""
    response = getattr(error, "response", None)
    status = error.get_http_status_code() if hasattr(error, "get_http_status_code") else None
    status = response.status_code if response is not None else status
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if status == 401:
        reason = f"does not know user {user!r} with this password" if user else "wants a user and a password"
        return UserError(
            f"register.tracking_uri: {tracking_uri}: MLflow {reason} (401).\n"
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to an account of that server."
        )
    if status == 403:
        return UserError(
            f"register.tracking_uri: {tracking_uri}: MLflow forbids it to user {user!r} (403): {error}\n"
            "An experiment or a model belongs to the account that made it: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD to that one, ask its owner for EDIT, or choose other names under `register`. "
            '"Invalid Host header": the server must be started with this address and port among --allowed-hosts.'
        )
    return None


def experiment_id(client: MlflowClient, name: str) -> str:
    """Find or create the experiment; with a SQLite store its artifacts go beside the database.

    Raises:
        UserError: the experiment was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        uri = client.tracking_uri
        # A server has an artifact root of its own, which every client can reach; a file store has not.
        beside = Path(uri.removeprefix(_SQLITE)).parent / "mlartifacts" if uri.startswith(_SQLITE) else None
        return client.create_experiment(name, artifact_location=beside.as_uri() if beside else None)
    if found.lifecycle_stage != "active":
        raise UserError(
            f"register.experiment: {name!r} was deleted in MLflow; restore it with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}` or choose another name."
        )
    return found.experiment_id


@contextmanager
def parent_run(client: MlflowClient, *, experiment: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """Open a run and end it as FINISHED or FAILED; yields its id.

    A run whose id is in MLFLOW_RUN_ID, as Kubeflow's plugin injects it, is used instead, and left for its owner to end.
    Within a pipeline run it is that one's, which another try or another task may have opened before; it ends when the
    pipeline run ends (`amlp.registry.outcome`).
    """
    if injected := os.environ.get("MLFLOW_RUN_ID"):
        RunLog(client, injected).tags({**tags, **pipeline_tags()})
        yield injected
        return
    if pipeline := pipeline_tags():
        run_id = pipeline_run(client, experiment=experiment, name=name)
        client.update_run(run_id, status="RUNNING")
        RunLog(client, run_id).tags({**tags, **pipeline})
        yield run_id
        return
    run = client.create_run(experiment_id(client, experiment), run_name=name, tags=dict(tags))
    with _ended(client, run.info.run_id):
        yield run.info.run_id


def pipeline_tags() -> dict[str, str]:
    """Tags that lead from a run in MLflow to the pipeline run that it belongs to; empty outside of pipelines."""
    run_id, pages = os.environ.get(PIPELINE_RUN), os.environ.get(PIPELINE_PAGES)
    if not run_id:
        return {}
    return {RUN_TAG: run_id} | ({PAGE_TAG: f"{pages.rstrip('/')}/#/runs/details/{run_id}"} if pages else {})


def pipeline_run(client: MlflowClient, *, experiment: str, name: str, pipeline: str = "") -> str:
    """Find or make the run of a pipeline run; returns its id.

    Tasks that make one in the same moment all get the one that was made first.

    Args:
        client: of MLflow.
        experiment: of MLflow.
        name: of a run that is made.
        pipeline: Kubeflow's id; empty for the pipeline run that this task belongs to.
    """
    pipeline = pipeline or pipeline_tags()[RUN_TAG]
    if found := find_pipeline_run(client, experiment=experiment, pipeline=pipeline):
        return found
    home = experiment_id(client, experiment)
    made: str = client.create_run(home, run_name=name, tags={RUN_TAG: pipeline}).info.run_id
    first = find_pipeline_run(client, experiment=experiment, pipeline=pipeline)
    if first != made:
        client.delete_run(made)
    return first


def find_pipeline_run(client: MlflowClient, *, experiment: str, pipeline: str) -> str:
    """Find the first run of a pipeline run; empty for none, also where the experiment is not there."""
    home = client.get_experiment_by_name(experiment)
    if home is None:
        return ""
    # Children carry no such tag.
    runs = client.search_runs([home.experiment_id], filter_string=_having({RUN_TAG: pipeline}))
    return min(((run.info.start_time, run.info.run_id) for run in runs), default=(0, ""))[1]


@contextmanager
def _ended(client: MlflowClient, run_id: str) -> Iterator[None]:
    """End a run as FINISHED, or as FAILED when the block does not end well."""
    try:
        yield
    except BaseException:
        client.set_terminated(run_id, status="FAILED")
        raise
    client.set_terminated(run_id)


@contextmanager
def reopened_run(client: MlflowClient, *, experiment: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """Open the run that has these tags, or a new one where none has, and end it; yields its id."""
    home = experiment_id(client, experiment)
    found = client.search_runs([home], filter_string=_having(tags), max_results=1)
    run_id = found[0].info.run_id if found else client.create_run(home, run_name=name, tags=dict(tags)).info.run_id
    client.update_run(run_id, status="RUNNING")
    with _ended(client, run_id):
        yield run_id


def finished_run(client: MlflowClient, *, parent: str, tags: Mapping[str, str]) -> str | None:
    """Find a run below `parent` that has these tags and ended well; return its id."""
    wanted = _having({"mlflow.parentRunId": parent, **tags}) + " and attributes.status = 'FINISHED'"
    found = client.search_runs([client.get_run(parent).info.experiment_id], filter_string=wanted, max_results=1)
    return found[0].info.run_id if found else None


def _having(tags: Mapping[str, str]) -> str:
    """MLflow's filter for runs with these tags; values must hold no quote."""
    return " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())


@contextmanager
def child_run(client: MlflowClient, *, parent: str, name: str, tags: Mapping[str, str]) -> Iterator[RunLog]:
    """Open a run below `parent` and end it as FINISHED or FAILED."""
    experiment = client.get_run(parent).info.experiment_id
    run = client.create_run(experiment, run_name=name, tags={"mlflow.parentRunId": parent, **tags})
    with _ended(client, run.info.run_id):
        yield RunLog(client, run.info.run_id)
