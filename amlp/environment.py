"""Settings of the process environment that must be in place before the large libraries are imported."""

from __future__ import annotations

import os
from pathlib import Path

import amlp
from amlp.errors import UserError

# Nothing here reports to anybody, and nothing is fetched from a model hub while it runs.
QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}

# Set in a pipeline's tasks: the run's id, and the address under which people open its pages.
PIPELINE_RUN, PIPELINE_PAGES = "AMLP_PIPELINE_RUN", "AMLP_PIPELINE_PAGES"
# Set where there is no repository to ask, such as in a container image; "-dirty" at the end as in `git describe`.
COMMIT_VARIABLE = "AMLP_GIT_COMMIT"
# Set in a pipeline's tasks: the image that they run in, as the pipeline names it.
IMAGE = "AMLP_IMAGE"
# Set in a pipeline's tasks: where MLflow is, as JSON of `tracking_uri` and `experiment`, for errors to be recorded.
RECORD = "AMLP_RECORD"
# Where a pipeline's tasks have a ConfigMap and Secrets mounted, a folder each, whose files hold a variable each.
SETTINGS_FOLDER = Path("/etc/amlp-settings")
# Set in a pipeline's tasks: a folder that lives as long as the task, further tries included.
STATE = "AMLP_STATE"
# Set by a pipeline's task: its name, for log lines in JSON.
TASK = "AMLP_TASK"
# Set in a task that launches a RayJob: its own pod.
POD_NAME, POD_UID = "AMLP_POD_NAME", "AMLP_POD_UID"


def quiet() -> None:
    """Turn telemetry and downloads off, unless the user's environment says otherwise."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def wheel_files() -> Path | None:
    """Return the folder of dvc.yaml, params.yaml and recipes/ that an installed wheel has; None in a clone."""
    folder = Path(amlp.__file__).resolve().parent / "template"
    return folder if folder.is_dir() else None


def check_code(git_commit: str) -> None:
    """Check that the image that runs here was built from a commit; anywhere else there is nothing to check.

    Args:
        git_commit: that the run was submitted from, with "-dirty" behind it where files differed from it.

    Raises:
        UserError: it was built from another.
    """
    stated = os.environ.get(COMMIT_VARIABLE)
    if stated and stated != git_commit:
        raise UserError(
            f"The run was submitted from commit {git_commit}, and this image was built from {stated}. Submit from the "
            "clone that the images were built from, or build and name images of that commit."
        )
