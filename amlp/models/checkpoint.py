"""Model files: plain tensors and the plan that builds the model for them again.

A file is one dictionary that `torch.load(weights_only=True)` reads: `kind`, `plan` (architecture), `input` (the
normalisation the weights were trained with), `state` (tensors). The plan travels with the weights, so fine-tuning
and serving never guess an architecture.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amlp.errors import UserError
from amlp.files import atomic_file
from amlp.models.encoder import Encoder, EncoderPlan


@dataclass(frozen=True)
class InputStats:
    """Normalisation of the model's input: per channel, for grey values in 0 .. 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, images: Tensor) -> Tensor:
        """Map uint8 (B, C, H, W) to float32 with about zero mean and unit variance."""
        return self.standardise(images.float() / 255.0)

    def standardise(self, pixels: Tensor) -> Tensor:
        """Map grey values (B, C, H, W) in 0 .. 1 to about zero mean and unit variance."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=pixels.device).view(shape)
        std = torch.tensor(self.std, device=pixels.device).view(shape)
        return (pixels - mean) / std


@dataclass(frozen=True)
class LoadReport:
    """What became of an encoder checkpoint's tensors in a new model; the lists hold the tensors' names."""

    matched: list[str]
    adapted: list[str]
    missing: list[str]
    unexpected: list[str]

    @property
    def matched_fraction(self) -> float:
        """Share of the model's own tensors that the checkpoint supplied, 0 .. 1."""
        found = len(self.matched) + len(self.adapted)
        return found / max(found + len(self.missing), 1)

    def __str__(self) -> str:
        text = (
            f"{len(self.matched)} matched, {len(self.adapted)} adapted, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected tensors"
        )
        for name in ("adapted", "missing", "unexpected"):
            keys = getattr(self, name)
            text += f"\n  {name}: {', '.join(keys[:6])}{' ...' if len(keys) > 6 else ''}" if keys else ""
        return text


def to_bytes(value: Mapping[str, Any]) -> memoryview:
    """Pack a dictionary of tensors and plain values; equal content gives equal bytes."""
    # Through memory: torch writes a file's own name into it, and the temporary name differs each time.
    buffer = io.BytesIO()
    torch.save(dict(value), buffer)
    return buffer.getbuffer()


def save(path: Path, value: Mapping[str, Any]) -> None:
    """Write what `to_bytes` packs."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(to_bytes(value))


def load(path: Path, kind: str) -> dict[str, Any]:
    """Read a file written by `save` and check what it is.

    Raises:
        UserError: the file is missing, unreadable or of another kind.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; expected the {kind} that an earlier stage writes. Run `dvc repro`.")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises anything from EOFError to UnpicklingError here, all of them for a damaged or foreign file.
        # Its text would advise to load the file in a way that runs code of the file.
        raise UserError(
            f"{path}: not readable as a {kind} checkpoint ({type(error).__name__}): the file is damaged, or is another "
            "kind of file. Fetch or make it again."
        ) from error
    found = value.get("kind") if isinstance(value, dict) else None
    if found != kind:
        raise UserError(f"{path}: expected a checkpoint of kind {kind!r}, found {found!r}.")
    return value


def save_encoder(path: Path, encoder: Encoder, stats: InputStats) -> None:
    save(
        path,
        {
            "kind": "amlp-encoder",
            "plan": asdict(encoder.plan),
            "input": asdict(stats),
            "state": {name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()},
        },
    )


def load_encoder(path: Path) -> tuple[Encoder, InputStats]:
    """Build the encoder that a checkpoint describes, weights included, in evaluation mode."""
    checkpoint = load(path, "amlp-encoder")
    encoder = Encoder(EncoderPlan(**checkpoint["plan"]))
    encoder.load_state_dict(checkpoint["state"])
    return encoder.eval(), InputStats(**checkpoint["input"])


def transfer_encoder(path: Path, target: Encoder, *, min_matched: float) -> tuple[LoadReport, InputStats]:
    """Copy a pre-trained encoder's weights into `target`, which may have another size or channel count.

    The fixed position table is rebuilt for the target's size instead of copied. Patch projections of another channel
    count are summed (to one channel) or spread evenly (from one channel), which keeps a grey picture's tokens.

    Raises:
        UserError: less than `min_matched` of the target's tensors could be filled.
    """
    checkpoint = load(path, "amlp-encoder")
    source, own = dict(checkpoint["state"]), target.state_dict()
    matched, adapted = [], []
    if source["vit.pos_embed"].shape != own["vit.pos_embed"].shape:
        source["vit.pos_embed"] = own["vit.pos_embed"]
        adapted.append("vit.pos_embed")
    projection, wanted = source["vit.patch_embed.proj.weight"], own["vit.patch_embed.proj.weight"]
    if projection.shape[1] != wanted.shape[1] and 1 in (projection.shape[1], wanted.shape[1]):
        grey = projection.sum(dim=1, keepdim=True)
        source["vit.patch_embed.proj.weight"] = grey.expand(-1, wanted.shape[1], -1, -1) / wanted.shape[1]
        adapted.append("vit.patch_embed.proj.weight")
    fitting = {name: tensor for name, tensor in source.items() if name in own and tensor.shape == own[name].shape}
    matched = [name for name in fitting if name not in adapted]
    adapted = [name for name in adapted if name in fitting]
    report = LoadReport(
        matched=matched,
        adapted=adapted,
        missing=[name for name in own if name not in fitting],
        unexpected=[name for name in source if name not in fitting],
    )
    if report.matched_fraction < min_matched:
        raise UserError(
            f"{path}: only {report.matched_fraction:.0%} of the encoder's tensors fit, at least {min_matched:.0%} must "
            f"(finetune.min_matched): {report}\nThe checkpoint was made with {checkpoint['plan']}, the configuration "
            "asks for another encoder: set the `encoder` section to match or pre-train again."
        )
    target.load_state_dict(fitting, strict=False)
    stats = InputStats(**checkpoint["input"])
    if len(stats.mean) != target.plan.channels:
        stats = InputStats(mean=stats.mean[:1] * target.plan.channels, std=stats.std[:1] * target.plan.channels)
    return report, stats
