from __future__ import annotations

from pathlib import Path

import pytest

from amlp.errors import UserError
from amlp.files import sha256
from amlp.registry.weights import segmenter_weights


def test_a_file_or_its_folder_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "segmenter.pt"
    file.write_bytes(b"weights")
    for model in (file, tmp_path):
        with segmenter_weights(str(model)) as found:
            assert (found.file, found.name, found.sha256) == (file, str(file), sha256(file))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere.pt", r"nowhere\.pt: no such file; expected segmenter\.pt"),
        ("models:/amlp-segmenter", "expected models:/NAME@ALIAS"),
        ("models:/amlp-segmenter@champion", r"mlflow\.db not found; name MLflow's address"),
    ],
)
def test_what_is_not_there_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=message), segmenter_weights(model):
        pass
    assert not list(tmp_path.iterdir()), "no empty database is left"
