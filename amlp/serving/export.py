"""`amlp export-onnx MODEL OUT.onnx`: a segmenter as one ONNX graph, for runtimes without Python or PyTorch.

The graph takes what `to_model_input` makes of a picture and normalises it itself. Bringing a picture to the model's
size, and the answer to the picture's, stays outside, because runtimes differ in how they resize;
docs/how-to/use-a-segmenter.md has the few lines that do it as the predictor does.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amlp import __version__
from amlp.data.pictures import read_image
from amlp.errors import UserError
from amlp.files import atomic_file
from amlp.models.predictor import Predictor
from amlp.models.segmenter import lesion_probability
from amlp.registry.model_input import example_input, read_images
from amlp.registry.weights import Weights
from amlp.serving.sources import list_sources

logger = logging.getLogger(__name__)

# Long supported by runtimes, and all that the graph needs.
OPSET = 18
INPUT, OUTPUTS = "images", ("probability", "presence", "logits")
TOLERANCE = 1e-4
_BATCH = 8


class _Graph(nn.Module):
    """The predictor between its resizings, as a module: what is exported."""

    mean: Tensor
    std: Tensor

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model = predictor.model
        self.flip_average = predictor.flip_average
        for name, values in (("mean", predictor.stats.mean), ("std", predictor.stats.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = (images.float() / 255.0 - self.mean) / self.std
        logits, presence = self.model(batch)
        if self.flip_average:
            mirrored, again = self.model(batch.flip(-1))
            logits, presence = (logits + mirrored.flip(-1)) / 2, (presence + again) / 2
        return lesion_probability(logits, presence), presence.sigmoid(), logits[:, 0]


def export_onnx(*, weights: Weights, out: Path, images: Path | None = None) -> float:
    """Write a segmenter as ONNX, after ONNX Runtime gave the same answers.

    Input `images`: (B, C, h, w) uint8, any B. Outputs: `probability` (B, h, w), that a pixel belongs to a lesion;
    `presence` (B,), that the image shows any; `logits` (B, h, w), which a mask of the picture's size is made of. All
    float32. The metadata hold `input_height`, `input_width`, `input_channels`, `weights_sha256`, `model`, `amlp`.

    Args:
        weights: the segmenter.
        out: file to write.
        images: folder of pictures to compare on; without, ONNX Runtime is tried on generated ones.

    Returns:
        The largest difference between a probability of ONNX Runtime and the predictor's, at the pictures' own sizes.

    Raises:
        UserError: a package is missing, a picture is unreadable, or the difference is over `TOLERANCE`; then nothing
            is written.
    """
    onnx, onnxruntime = _packages()
    predictor = Predictor.load(weights.file)
    plan = predictor.model.plan
    pictures, named = _pictures(images)
    program = _export(_Graph(predictor).eval(), (plan.channels, plan.height, plan.width))
    model = program.model_proto
    # They hold paths of this machine, line by line of the source.
    for node in (*model.graph.node, *model.graph.value_info):
        del node.metadata_props[:]
    onnx.helper.set_model_props(
        model,
        {
            "input_height": str(plan.height),
            "input_width": str(plan.width),
            "input_channels": str(plan.channels),
            "weights_sha256": weights.sha256,
            "model": Path(weights.name).name,
            "amlp": __version__,
            "flip_average": json.dumps(predictor.flip_average),
        },
    )
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    difference, changed, count = _compare(predictor, session, pictures)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{out}: not written: on {named} a probability of ONNX Runtime {onnxruntime.__version__} differs by "
            f"{difference:.2g} from PyTorch's, allowed is {TOLERANCE:g}. Please report this."
        )
    with atomic_file(out) as temporary:
        temporary.write_bytes(content)
    logger.info(
        f"wrote {out}: {len(content) / 1e6:.1f} MB, opset {OPSET}; on {count} {named} the largest difference of a "
        f"probability is {difference:.2g}, of the masks {changed} pixels"
    )
    return difference


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # What PyTorch's exporter imports.
    except ImportError as error:
        raise UserError(f"ONNX export needs the extra onnx ({error}): pip install 'amlp[onnx]'") from error
    return onnx, onnxruntime


def _export(graph: _Graph, shape: tuple[int, int, int]) -> Any:
    # Two: PyTorch takes a batch of one for a size that is always one.
    example = torch.zeros((2, *shape), dtype=torch.uint8)
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        # Of deprecated names within PyTorch and onnxscript, and its progress.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None
    return program


def _pictures(folder: Path | None) -> tuple[Iterator[NDArray[Any]], str]:
    """The pictures to compare on, and what to call them."""
    if folder is not None:
        sources, _ = list_sources(folder)
        return (read_image(source.path) for source in sources if not source.volume), f"pictures of {folder}"
    random = np.random.default_rng(0)
    generated = read_images(example_input())[0]
    for size in ((40, 40), (61, 45), (300, 200), (128, 96, 3), (1, 1), (33, 500)):
        generated.append(random.integers(0, 256, size, dtype=np.uint8))
        # Areas, as pictures have them, beside noise.
        blocks = random.integers(0, 256, (5, 5), dtype=np.uint8)
        generated.append(np.kron(blocks, np.ones((size[0] // 5 + 1, size[1] // 5 + 1), np.uint8)))
    return iter(generated), "generated pictures"


def _compare(predictor: Predictor, session: Any, pictures: Iterator[NDArray[Any]]) -> tuple[float, int, int]:
    """Largest difference of a probability and count of mask pixels that differ, both at native size; pictures seen."""
    largest, changed, count = 0.0, 0, 0
    batch: list[NDArray[Any]] = []

    def look() -> None:
        nonlocal largest, changed, count
        inputs = np.stack([predictor.prepare(picture) for picture in batch])
        outputs = dict(zip(OUTPUTS, session.run(list(OUTPUTS), {INPUT: inputs}), strict=True))
        for number, picture in enumerate(batch):
            expected = predictor.segment(picture)
            found = native_probability(outputs["logits"][number], outputs["presence"][number], picture.shape[:2])
            largest = max(largest, float(np.abs(found - expected.probability).max()))
            changed += int(np.count_nonzero((found > 0.5) != (expected.mask != 0)))
        count += len(batch)
        batch.clear()

    for picture in pictures:
        batch.append(picture)
        if len(batch) == _BATCH:
            look()
    if batch:
        look()
    return largest, changed, count


def native_probability(logits: NDArray[np.float32], presence: float, size: Sequence[int]) -> NDArray[np.float32]:
    """Bring the graph's answer for one picture to its size (H, W), without PyTorch.

    Args:
        logits: (h, w) of the graph's `logits`.
        presence: of the graph's `presence`, 0 .. 1.
        size: (H, W).
    """
    for axis in (0, 1):
        length = logits.shape[axis]
        place = np.clip((np.arange(size[axis]) + 0.5) * length / size[axis] - 0.5, 0, length - 1)
        low = place.astype(int)
        share = (place - low).astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
        logits = (
            np.take(logits, low, axis) * (1 - share) + np.take(logits, np.minimum(low + 1, length - 1), axis) * share
        )
    # Clipped: what is beyond is 0 or 1 in float32, and would overflow.
    return np.minimum(1 / (1 + np.exp(-np.clip(logits, -80, 80))), np.float32(presence))
