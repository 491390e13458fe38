"""The cluster under test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support.real_cluster import NEEDED, Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster that the environment names; what a run made there is removed in the end."""
    missing = [f"{name} ({text})" if text else name for name, text in NEEDED.items() if not os.environ.get(name)]
    if missing:
        pytest.skip(f"not set: {'; '.join(missing)}")
    found = Cluster(
        tmp_path_factory.mktemp("cluster"),
        os.environ.get("AMLP_CLUSTER_NAMESPACE", "kubeflow"),
        os.environ.get("AMLP_CLUSTER_TRACKING_URI", "http://mlflow.amlp.svc.cluster.local:5000"),
        os.environ.get("AMLP_CLUSTER_WORK", "s3://amlp-runs/acceptance"),
    )
    yield found
    for experiment in found.api("GET", "experiments?page_size=100").get("experiments", []):
        if experiment["display_name"] == "amlp-acceptance":
            for run in found.api("GET", f"runs?experiment_id={experiment['experiment_id']}&page_size=100").get(
                "runs", []
            ):
                with suppress(Exception):
                    found.api("POST", f"runs/{run['run_id']}:archive")
                    found.api("DELETE", f"runs/{run['run_id']}")
            with suppress(Exception):
                found.api("DELETE", f"experiments/{experiment['experiment_id']}")
    width = max((len(what) for what, _ in found.rows), default=0)
    print("\n" + "\n".join(f"{what:{width}}  {how}" for what, how in found.rows))
