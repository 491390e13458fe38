from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from amlp.cli import main
from amlp.data.images import to_model_input
from amlp.data.phantom import render_patient
from amlp.data.pictures import read_image, write_png
from amlp.errors import UserError
from amlp.files import sha256
from amlp.models.predictor import Predictor
from amlp.params import PhantomParams
from amlp.registry.weights import Weights
from amlp.serving import export
from amlp.serving.export import OPSET, TOLERANCE, export_onnx, native_probability
from tests.support.stage_outputs import write_stage_outputs

# PyTorch's exporter is slow to start.
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    root = tmp_path_factory.mktemp("root")
    write_stage_outputs(root)
    file = root / "models/segmenter/segmenter.pt"
    return Weights(file, "a model", sha256(file))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of the phantom, grey, and one in colour."""
    folder = tmp_path_factory.mktemp("pictures")
    cases = [case for patient in range(3) for case in render_patient(params=PhantomParams(), seed=5, patient=patient)]
    for number, case in enumerate(cases):
        write_png(folder / f"{number}.png", case.image)
    write_png(folder / "colour.png", np.random.default_rng(0).integers(0, 256, (41, 30, 3), dtype=np.uint8))
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="module")
def exported(weights: Weights, pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "segmenter.onnx"
    arguments = ["export-onnx", str(weights.file), str(out), "--images", str(pictures[0].parent)]
    assert main(arguments) == 0
    return out


def test_onnx_runtime_gives_the_predictor_s_masks(weights: Weights, pictures: list[Path], exported: Path) -> None:
    predictor, session = Predictor.load(weights.file), onnxruntime.InferenceSession(exported)
    images = [read_image(path) for path in pictures]
    inputs = np.stack([to_model_input(image, channels=1, height=32, width=32) for image in images])
    for batch in (1, len(images)):  # any number at a time
        probability, presence, logits = session.run(["probability", "presence", "logits"], {"images": inputs[:batch]})
        assert probability.shape == (batch, 32, 32) and presence.shape == (batch,)
        for number, image in enumerate(images[:batch]):
            expected = predictor.segment(image)
            found = native_probability(logits[number], presence[number], image.shape[:2])
            assert np.abs(found - expected.probability).max() <= TOLERANCE
            np.testing.assert_array_equal(found > 0.5, expected.mask != 0)
            own = predictor.probability(inputs[number, 0])
            assert np.abs(probability[number] - own).max() <= TOLERANCE


def test_the_lines_in_the_documentation_give_the_predictor_s_mask(
    project: Path, weights: Weights, pictures: list[Path], exported: Path
) -> None:
    text = (project / "docs/how-to/use-a-segmenter.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "onnxruntime" in block]
    for path in pictures:
        program = code.replace('"segmenter.onnx"', repr(str(exported))).replace('"image.png"', repr(str(path)))
        assert str(exported) in program and str(path) in program
        names: dict[str, Any] = {}
        exec(program, names)
        np.testing.assert_array_equal(names["mask"], Predictor.load(weights.file).mask(read_image(path)) != 0)


def test_the_file_tells_what_it_is_and_wants(project: Path, weights: Weights, exported: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET}
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["weights_sha256"] == weights.sha256
    assert (said["input_channels"], said["input_height"], said["input_width"]) == ("1", "32", "32")
    [taken] = model.graph.input
    assert taken.name == "images" and taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert taken.type.tensor_type.shape.dim[0].dim_param, "any number of images"
    content = exported.read_bytes()
    for place in (weights.file.parent, exported.parent, project / "amlp", Path(torch.__file__).parent):
        assert str(place).encode() not in content, "no path of this machine"


def test_an_export_that_differs_is_not_written(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(export._Graph):
        def forward(self, images: Any) -> Any:
            return super().forward(images.flip(-1))

    monkeypatch.setattr(export, "_Graph", Broken)
    with pytest.raises(UserError, match=r"not written: on generated pictures a probability .* differs by"):
        export_onnx(weights=weights, out=tmp_path / "segmenter.onnx")
    assert not list(tmp_path.iterdir())
