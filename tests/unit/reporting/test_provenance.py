from __future__ import annotations

import json
import subprocess
from pathlib import Path

from amlp.registry.lineage import folder_in_repository
from amlp.registry.registration import Registration
from amlp.reporting.provenance import reproduce_code
from tests.support.records import registration_of


def test_a_project_inside_a_repository_is_entered_before_it_runs(tmp_path: Path) -> None:
    project = tmp_path / "my project"
    project.mkdir()
    assert folder_in_repository(project) == ""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    assert folder_in_repository(tmp_path) == ""
    folder = folder_in_repository(project)
    (tmp_path / "registration.json").write_text(json.dumps(registration_of()))
    lines = reproduce_code(Registration.read(tmp_path / "registration.json"), folder).splitlines()
    assert lines[-2:] == ["cd 'my project'", "dvc repro"]
    assert "cd" not in reproduce_code(None, "")
