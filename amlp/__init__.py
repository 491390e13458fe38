"""AMLP, Adjustable Masking Lesion Patches: self-supervised pre-training for lesion segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from amlp.errors import UserError

if TYPE_CHECKING:
    from amlp.models.predictor import Predictor

__all__ = ["UserError", "load"]
__version__ = "0.1.0"


def load(model: str | Path, *, tracking_uri: str | None = None, device: str = "cpu") -> Predictor:
    """Load a trained segmenter.

    Args:
        model: `segmenter.pt` or its folder, or a version in MLflow: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: MLflow's address; None takes MLFLOW_TRACKING_URI, else `mlflow.db` in the current folder.
        device: where the model runs, as PyTorch names it: "cpu", "cuda", "cuda:1".

    Returns:
        A predictor: `predict(images)` gives masks, `probabilities(images)` probabilities of each pixel.

    Raises:
        UserError: there is no such file, version or device, MLflow does not answer, or the file is no segmenter or
            not the one that was registered.
    """
    # Here, so that `import amlp` does not wait for torch.
    from amlp.models.predictor import Predictor
    from amlp.registry.weights import segmenter_weights

    with segmenter_weights(str(model), tracking_uri) as weights:
        return Predictor.load(weights.file, device)
