"""Settings of the process environment that must be in place before the large libraries are imported."""

from __future__ import annotations

import os

# Nobody is told what runs here, and nothing is fetched from a model hub while it runs.
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
# Set in a task that launches a RayJob: its own pod.
POD_NAME, POD_UID = "AMLP_POD_NAME", "AMLP_POD_UID"


def quiet() -> None:
    """Turn telemetry and downloads off, unless the user's environment says otherwise."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
