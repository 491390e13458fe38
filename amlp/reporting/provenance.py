"""Where a run comes from, how to load its model and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lineage_rows(registration: Mapping[str, Any]) -> list[tuple[str, str]]:
    lineage = registration["lineage"]
    rows = [
        (f"{registration[part]['name']}", f"version {registration[part]['version']} "
         f"({', '.join(registration[part]['aliases'])}), weights SHA-256 {registration[part]['model_sha256']}")
        for part in ("segmenter", "encoder")
    ]  # fmt: skip
    dirty = {True: " (with changes that are not committed)", False: "", None: ""}[lineage["git_dirty"]]
    return [
        *rows,
        ("Data, MD5 by DVC", lineage["data_md5"]),
        ("Test split", lineage["test_hash"]),
        ("Code, git commit", lineage["git_commit"] + dirty),
        ("Parameters", lineage["params_hash"]),
        ("amlp", lineage["amlp_version"]),
        ("MLflow", f"{registration['tracking_uri']}, experiment {registration['experiment']}, "
                   f"run {registration['parent_run_id']}"),
    ]  # fmt: skip


def load_code(registration: Mapping[str, Any]) -> str:
    segmenter = registration["segmenter"]
    return "\n".join(
        [
            "from pathlib import Path",
            "",
            "import mlflow",
            "",
            f'mlflow.set_tracking_uri("{registration["tracking_uri"]}")',
            f'model = mlflow.pyfunc.load_model("models:/{segmenter["name"]}/{segmenter["version"]}")  '
            f"# or models:/{segmenter['name']}@champion",
            'mask = model.predict(Path("image.png").read_bytes())["mask"]  # (height, width) of 0 and 1',
        ]
    )


def reproduce_code(registration: Mapping[str, Any] | None) -> str:
    lineage = registration["lineage"] if registration else {"git_commit": "unknown"}
    checkout = [] if lineage["git_commit"] == "unknown" else [f"git checkout {lineage['git_commit']}"]
    setup = [f"pip install {pin}"] if (pin := lineage.get("requirement")) else ["make setup", ". .venv/bin/activate"]
    return "\n".join([*checkout, *setup, "dvc repro"])


def dirty_note(registration: Mapping[str, Any] | None) -> str:
    if not registration or registration["lineage"]["git_dirty"] is False:
        return ""
    if registration["lineage"]["git_dirty"] is None:
        return "It is not known which commit this run was made with, or whether files differed from it."
    return "Files differed from this commit when the run was made, so the commit alone does not reproduce it."
