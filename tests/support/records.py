"""Records as stages write them, whole, for tests that care for a part."""

from __future__ import annotations

from typing import Any


def summary_of(test: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return what evaluation/summary.json holds."""
    return {"test": test, "rule": "the rule", "confidence": 0.95, "models": {}, "paired": {}, **changes}


def registration_of(**changes: Any) -> dict[str, Any]:
    """Return what registration.json holds."""
    model = {"version": "3", "aliases": ["candidate"], "model_sha256": "c" * 64}
    return {
        "tracking_uri": "sqlite:///mlflow.db",
        "experiment": "amlp",
        "parent_run_id": "d" * 32,
        "encoder": {"name": "amlp-encoder", **model},
        "segmenter": {"name": "amlp-segmenter", **model},
        "lineage": {
            "data_md5": "e" * 32 + ".dir",
            "git_commit": "f" * 40,
            "git_dirty": True,
            "params_hash": "0" * 64,
            "test_hash": "1" * 64,
            "amlp_version": "0.1.0",
        },
        **changes,
    }
