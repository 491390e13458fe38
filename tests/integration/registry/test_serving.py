"""A registered segmenter behind `mlflow models serve`, where no `amlp` is installed.

The libraries are this environment's. tests/serve/ does the same in one with the model's requirements alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from amlp.params import parse_params
from amlp.registry.register import register
from tests.support.scoring import check_server, scoring_server
from tests.support.stage_outputs import write_stage_outputs

# Runs at each start of Python, after what the project's installation put on the path.
WITHOUT_AMLP = """
import os, sys
sys.path[:] = [path for path in sys.path if not os.path.isdir(os.path.join(path or ".", "amlp"))]
"""


def test_a_served_champion_gives_evaluate_s_masks_and_refuses_garbage(tmp_path: Path, migrated_database: Path) -> None:
    root, folder = tmp_path / "root", tmp_path / "elsewhere"
    write_stage_outputs(root)
    shutil.copy(migrated_database, root / "mlflow.db")
    address = f"sqlite:///{root}/mlflow.db"
    register(params=parse_params({"register": {"tracking_uri": address}}, "test"), root=root, data_md5="0" * 32)
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WITHOUT_AMLP)
    paths = [str(folder), *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "MLFLOW_TRACKING_URI": address}
    done = subprocess.run(
        [sys.executable, "-c", "import amlp"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert "No module named 'amlp'" in done.stderr, "else the server could use the installed one"

    programs = Path(sys.executable).parent
    with scoring_server(programs, "models:/amlp-segmenter@candidate", folder=folder, environment=environment) as server:
        check_server(server, root / "models/segmenter/segmenter.pt", tmp_path)
