"""`amlp predict`, killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from amlp.data.pictures import read_image, read_mask, write_png
from amlp.files import sha256
from amlp.models.predictor import Predictor
from amlp.registry.weights import Weights
from amlp.serving.outputs import JOURNAL
from amlp.serving.predict import predict_folder
from tests.support.stage_outputs import write_stage_outputs

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    root = tmp_path_factory.mktemp("root")
    write_stage_outputs(root)
    file = root / "models/segmenter/segmenter.pt"
    return Weights(file, "a model", sha256(file))


def table_of(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "predictions.csv").set_index("file")


@pytest.mark.timeout(180)
def test_a_killed_run_resumes_and_leaves_no_half_file(weights: Weights, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(1000):
        write_png(folder / f"{number:04d}.png", RANDOM.integers(0, 256, (40, 50), dtype=np.uint8))
    Image.open(folder / "0000.png").save(folder / "0000.bmp")
    (folder / "0000.png").unlink()
    command = [sys.executable, "-m", "amlp", "predict", str(folder), str(out), "--model", str(weights.file)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        while process.poll() is None and not (
            (out / JOURNAL).is_file() and (out / JOURNAL).read_text().count("\n") > 20
        ):
            time.sleep(0.01)  # between looks at a run that goes on
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    (out / "masks/.999.1234.tmp.png").write_bytes(b"half")
    with (out / JOURNAL).open("a") as journal:
        journal.write('{"file": "39')
    finished = {path.name: path.stat().st_mtime_ns for path in (out / "masks").glob("[!.]*.png")}
    noted = (out / JOURNAL).read_text().count('"rows"')
    assert 20 <= noted < 1000 and not (out / "predictions.csv").exists()

    # Not noted, and so not trusted: this one has changed since.
    write_png(folder / "0002.png", np.zeros((40, 51), np.uint8))
    # A namesake takes its mask's name, so its own has another one now.
    write_png(folder / "0000.png", np.zeros((9, 9), np.uint8))
    summary = predict_folder(weights=weights, source=folder, out=out)
    assert (summary["images"], summary["bad_files"]) == (1001, 0)
    table, predictor = table_of(out), Predictor.load(weights.file)
    assert len(table) == 1001 and table.loc["0002.png", "width"] == 51
    assert table["mask"].is_unique
    for name in table.index[::100]:
        mask = read_mask(out / table.loc[name, "mask"])
        np.testing.assert_array_equal(mask, predictor.mask(read_image(folder / name)))
    kept = [name for name, when in finished.items() if (out / "masks" / name).stat().st_mtime_ns == when]
    assert len(kept) >= noted - 2, "what was finished is not done again"
    assert not list(out.rglob(".*"))
