"""Where a run comes from, how to load its model and how to make it again."""

from __future__ import annotations

import shlex

from amlp.registry.registration import Registration


def lineage_rows(registration: Registration) -> list[tuple[str, str]]:
    lineage = registration.lineage
    rows = [
        (model.name, f"version {model.version} ({', '.join(model.aliases)}), weights SHA-256 {model.model_sha256}")
        for model in (registration.segmenter, registration.encoder)
    ]
    dirty = {True: " (with changes that are not committed)", False: "", None: ""}[lineage.git_dirty]
    return [
        *rows,
        ("Data, MD5 by DVC", lineage.data_md5),
        ("Test split", lineage.test_hash),
        ("Code, git commit", lineage.git_commit + dirty),
        ("Parameters", lineage.params_hash),
        ("amlp", lineage.amlp_version),
        ("MLflow", f"{registration.tracking_uri}, experiment {registration.experiment}, "
                   f"run {registration.parent_run_id}"),
    ]  # fmt: skip


def load_code(registration: Registration) -> str:
    segmenter = registration.segmenter
    return "\n".join(
        [
            "from pathlib import Path",
            "",
            "import mlflow",
            "",
            f'mlflow.set_tracking_uri("{registration.tracking_uri}")',
            f'model = mlflow.pyfunc.load_model("models:/{segmenter.name}/{segmenter.version}")  '
            f"# or models:/{segmenter.name}@champion",
            'mask = model.predict(Path("image.png").read_bytes())["mask"]  # (height, width) of 0 and 1',
        ]
    )


def reproduce_code(registration: Registration | None, folder: str = "") -> str:
    """Return the commands that make a run again.

    Args:
        registration: of the run.
        folder: of the project, seen from the root of its git repository; empty where it is that root.
    """
    commit = registration.lineage.git_commit if registration else "unknown"
    requirement = registration.lineage.requirement if registration else ""
    checkout = [] if commit == "unknown" else [f"git checkout {commit}"]
    setup = [f"pip install {requirement}"] if requirement else ["make setup", ". .venv/bin/activate"]
    inside = [f"cd {shlex.quote(folder)}"] if folder else []
    return "\n".join([*checkout, *setup, *inside, "dvc repro"])


def dirty_note(registration: Registration | None) -> str:
    if not registration or registration.lineage.git_dirty is False:
        return ""
    if registration.lineage.git_dirty is None:
        return "It is not known which commit this run was made with, or whether files differed from it."
    return "Files differed from this commit when the run was made, so the commit alone does not reproduce it."
