"""What a user can set: `params.yaml` as typed, frozen objects.

`load_params` reports every unknown key (with the nearest valid one), wrong type and value out of range in one error.
The defaults of this file and the values of the repository's `params.yaml` are the demo on the phantom; where the paper
is silent they are our definitions (docs/explanation/method.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from amlp.data_params import IngestParams as IngestParams
from amlp.data_params import PairsParams as PairsParams
from amlp.data_params import PhantomParams as PhantomParams
from amlp.data_params import PreprocessParams as PreprocessParams
from amlp.data_params import TableParams as TableParams
from amlp.data_params import ValidateParams as ValidateParams
from amlp.errors import UserError, without_credentials
from amlp.sections import Count, Fraction, OpenFraction, Positive, PositiveFloat
from amlp.sections import Section as Section
from amlp.sections import parse_section as parse_section
from amlp.sections import read_mapping as read_mapping


class ScoreParams(Section):
    """MPS: which patches look like a lesion, before the encoder has learnt anything."""

    patch: Annotated[int, Field(ge=2)] = 8
    # `contrast`: how enclosed by tissue of another grey; `intensity`: grey value; `raw`: 2-means on raw patches.
    descriptor: Literal["contrast", "intensity", "raw"] = "contrast"
    # Lesions are darker or brighter than what surrounds them; `unknown` takes, image by image, what stands out more.
    polarity: Literal["dark", "bright", "unknown"] = "dark"
    # How much a patch's nearness to the centre counts: operators centre what they look for. 0 turns it off.
    centre_prior: Fraction = 1.0
    # Guard: clusters that explain less than this share of the variance are none, and the image is masked at random.
    min_separation: Fraction = 0.05
    # Guard: scores from every other pixel that correlate less with those from the rest are chance; 0 turns it off.
    min_repeat: Fraction = 0.7


class EncoderParams(Section):
    """The ViT that is pre-trained."""

    patch: Annotated[int, Field(ge=2)] = 8
    dim: Positive = 192
    depth: Annotated[int, Field(ge=2)] = 6
    heads: Positive = 3

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> EncoderParams:
        # 4, for the 2-D sine-cosine position embedding takes dim in four parts.
        if self.dim % self.heads or self.dim % 4:
            raise ValueError(f"dim {self.dim} must be a multiple of heads {self.heads} and of 4")
        return self


class DecoderParams(Section):
    """The light decoder that reconstructs masked patches and is thrown away after pre-training."""

    dim: Annotated[int, Field(ge=4, multiple_of=4)] = 96
    depth: Positive = 2
    heads: Positive = 3

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> DecoderParams:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} must be a multiple of heads {self.heads}")
        return self


class AmrParams(Section):
    """AMR: the masking ratio's schedule. Off: `end` from the first step to the last, as MAE does."""

    enabled: bool = True
    schedule: Literal["rising", "falling"] = "rising"
    start: OpenFraction = 0.25
    end: OpenFraction = 0.75
    power: PositiveFloat = 1.0


class MpsParams(Section):
    """MPS: lesion patches are masked first. Off: random masking."""

    enabled: bool = True
    # Share of an image's lesion patches that may be masked; above `amr.end`, or MPS turns into random masking.
    cap: OpenFraction = 0.9
    # Largest weight of the EMA model's own categories against the clusters'.
    refine: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    # Share of the training before refinement starts; it then rises to its full weight over an equal share.
    warmup: Fraction = 0.25
    # Each refinement looks at every training image once more.
    refresh_epochs: Positive = 10


class RrlParams(Section):
    """RRL: hard patches weigh more in the reconstruction loss. Off: every patch weighs 1."""

    enabled: bool = True
    gamma: Annotated[float, Field(ge=0.0, le=4.0)] = 1.0
    clip: Annotated[float, Field(gt=1.0)] = 5.0
    warmup: Fraction = 0.25


class CclParams(Section):
    """CCL: a category head kept consistent with reconstruction difficulty."""

    enabled: bool = True
    weight: Annotated[float, Field(ge=0.0)] = 1.0
    # Largest weight of difficulty against the cluster category in the target.
    difficulty: Fraction = 0.25
    warmup: Fraction = 0.25


class PretrainParams(Section):
    """Self-supervised pre-training on the training split."""

    epochs: Positive = 30
    batch: Positive = 16
    lr: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    warmup: Fraction = 0.1
    clip_norm: PositiveFloat = 1.0
    ema: OpenFraction = 0.9999
    # What is reconstructed: the image, the image after a Gaussian low-pass, each patch normalised by itself (MAE), or
    # histograms of oriented gradients after the low-pass.
    target: Literal["image", "lowpass", "normalised", "hog"] = "lowpass"
    lowpass_sigma: PositiveFloat = 2.0
    min_crop: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint_epochs: Positive = 5
    # 0 trains in this process; n starts n Ray Train workers.
    num_workers: Count = 0
    decoder: DecoderParams = DecoderParams()
    amr: AmrParams = AmrParams()
    mps: MpsParams = MpsParams()
    rrl: RrlParams = RrlParams()
    ccl: CclParams = CclParams()

    @model_validator(mode="after")
    def _cap_above_ratio(self) -> PretrainParams:
        highest = max(self.amr.start, self.amr.end) if self.amr.enabled else self.amr.end
        if self.mps.enabled and self.mps.cap <= highest:
            raise ValueError(
                f"mps.cap {self.mps.cap} must exceed the highest masking ratio {highest}, or MPS masks at random"
            )
        return self


class FinetuneParams(Section):
    """Supervised training of the segmenter."""

    RENAMED: ClassVar[Mapping[str, str]] = {"categories": "pseudo_labels", "category_epochs": "pseudo_label_epochs"}

    # `unet` is a plain U-Net, as a reference; it has nothing to pre-train, so it starts from scratch.
    network: Literal["vit", "unet"] = "vit"
    epochs: Positive = 10
    batch: Positive = 8
    lr: PositiveFloat = 1e-3
    # Each layer of the encoder learns this much slower than the one above it.
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    warmup: Fraction = 0.1
    clip_norm: PositiveFloat = 1.0
    label_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    # Pseudo-label pre-training: before it sees masks the segmenter learns where lesions probably are, from all training
    # images: from the categories that pre-training refined (none from scratch or after plain MAE), or from
    # preprocessing's clusters.
    pseudo_labels: Literal["pretrained", "clusters", "none"] = "pretrained"
    pseudo_label_epochs: Count = 8
    ema: OpenFraction = 0.99
    augment: bool = True
    min_crop: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    # Largest rotation, in radians.
    rotate: Annotated[float, Field(ge=0.0, le=3.2)] = 0.2
    channels: Positive = 32
    # Epochs between looks at the validation split; the last epoch is always looked at.
    validate_epochs: Positive = 1
    # Average the logits of the image and its mirror image when predicting.
    flip_average: bool = True
    # The encoder's checkpoint must supply at least this share of the encoder's tensors.
    min_matched: Fraction = 0.9
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint_epochs: Positive = 5
    num_workers: Count = 0


class EvaluateParams(Section):
    """Scoring on the test split."""

    bootstrap_samples: Annotated[int, Field(ge=100)] = 2000
    confidence: OpenFraction = 0.95


class RegisterParams(Section):
    """MLflow."""

    tracking_uri: str = "sqlite:///mlflow.db"
    experiment: str = "amlp"
    encoder_name: str = "amlp-encoder"
    segmenter_name: str = "amlp-segmenter"

    @model_validator(mode="after")
    def _no_secret(self) -> RegisterParams:
        # The address stands in registration.json, in the report and in MLflow itself.
        if without_credentials(self.tracking_uri) != self.tracking_uri:
            raise ValueError(
                "tracking_uri must hold no password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        return self


class GateParams(Section):
    """When a challenger takes the champion's place; amlp/promotion/gate.py has the rule."""

    # Gain in mean DSC over all images that must be exceeded.
    min_effect: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    # What a label class may lose: the interval must show that it lost less, once the class looks worse.
    class_margin: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    false_positive_margin: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    # Below, percentile intervals are too narrow.
    min_groups: Annotated[int, Field(ge=2)] = 50
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.98
    bootstrap_samples: Annotated[int, Field(ge=1000)] = 10000


class Params(Section):
    """All of `params.yaml`."""

    seed: Count = 0
    ingest: IngestParams = IngestParams()
    validate_: ValidateParams = Field(default=ValidateParams(), alias="validate")
    preprocess: PreprocessParams = PreprocessParams()
    scores: ScoreParams = ScoreParams()
    encoder: EncoderParams = EncoderParams()
    pretrain: PretrainParams = PretrainParams()
    finetune: FinetuneParams = FinetuneParams()
    evaluate: EvaluateParams = EvaluateParams()
    register_: RegisterParams = Field(default=RegisterParams(), alias="register")
    gate: GateParams = GateParams()

    @model_validator(mode="after")
    def _patch_divides_size(self) -> Params:
        patch, size = self.encoder.patch, self.preprocess
        if size.height % patch or size.width % patch:
            raise ValueError(
                f"encoder.patch {patch} must divide preprocess.height {size.height} and preprocess.width {size.width}"
            )
        if self.pretrain.target == "hog" and patch % 2:
            raise ValueError(f"pretrain.target hog halves patches: encoder.patch must be even, is {patch}")
        return self

    def digest(self) -> str:
        """Hash of every value, defaults included: equal digests mean equal settings."""
        text = json.dumps(self.model_dump(by_alias=True), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def parse_params(values: Mapping[str, Any], origin: str) -> Params:
    """Check and freeze parameter values, see `parse_section`."""
    return parse_section(Params, values, origin)


def load_params(path: Path) -> Params:
    """Read `params.yaml`.

    Raises:
        UserError: the file is missing or is no YAML mapping.
        ListedError: some values are wrong; the error lists all of them.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found. Run in the folder that holds params.yaml, or pass --params FILE.")
    return parse_params(read_mapping(path), str(path))
