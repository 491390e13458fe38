from __future__ import annotations

from amlp.cluster.rayjob import Deadlines
from amlp.cluster.training import ClusterParams


def test_a_pipelines_deadlines_are_the_launchers_unless_they_are_named() -> None:
    settings = ClusterParams()
    assert settings.start_minutes * 60 == Deadlines().pre_running
    assert settings.deadline_hours * 3600 == Deadlines().total
