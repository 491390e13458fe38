"""The segmenter: the encoder's intermediate features, brought back to full resolution beside a light detail path."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amlp.models.encoder import Encoder, EncoderPlan
from amlp.models.unet import UNet


def _convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), _norm_and_activation(outputs)
    )


def _norm_and_activation(channels: int) -> nn.Sequential:
    # Groups of channels, not batches: batches are small, and a worker sees only its part of one.
    return nn.Sequential(nn.GroupNorm(math.gcd(8, channels), channels), nn.GELU())


class Segmenter(nn.Module):
    """ViT encoder, and a light convolutional U-Net that its features enter at the bottom.

    Patches of several pixels can't carry an outline, so convolutions see the image itself at strides 1, 2, 4, ... up to
    the patch size; there the encoder's intermediate features join, and the way up meets the finer strides again.

    Args:
        plan: the encoder's.
        channels: width at stride 2; it halves at stride 1 and doubles with each stride above.
    """

    def __init__(self, plan: EncoderPlan, channels: int) -> None:
        super().__init__()
        self.plan = plan
        self.encoder = Encoder(plan)
        taps = min(4, plan.depth)
        self.layers = [round((i + 1) * plan.depth / taps) - 1 for i in range(taps)]
        strides = [2**i for i in range(plan.patch.bit_length()) if 2**i < plan.patch]
        widths = [max(channels * stride // 2, 8) for stride in strides]

        self.down = nn.ModuleList([_convolution(plan.channels, widths[0])])
        for finer, coarser in pairwise(widths):
            self.down.append(nn.Sequential(_convolution(finer, coarser, stride=2), _convolution(coarser, coarser)))
        deep = 2 * widths[-1]
        self.bottom = _convolution(widths[-1], deep, stride=2)
        self.neck = nn.Sequential(nn.Conv2d(taps * plan.dim, deep, 1), _norm_and_activation(deep))
        self.merge = nn.Sequential(_convolution(2 * deep, deep), _convolution(deep, deep))
        self.narrow, self.join = nn.ModuleList(), nn.ModuleList()
        previous = deep
        for width in reversed(widths):
            self.narrow.append(nn.Conv2d(previous, width, 1))
            self.join.append(_convolution(width, width))
            previous = width
        self.head = nn.Conv2d(previous, 1, 1)
        self.presence = nn.Linear(2 * deep, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Segment normalised images (B, C, H, W).

        Returns:
            Logits (B, 1, H, W) that a pixel belongs to a lesion, and logits (B,) that the image shows any lesion.
        """
        # On a CPU, convolutions take two thirds of the time in this layout.
        details, x = [], images.contiguous(memory_format=torch.channels_last)
        for block in self.down:
            x = block(x)
            details.append(x)
        features = torch.cat(self.encoder.features(images, self.layers), dim=1)
        features = self.neck(features.contiguous(memory_format=torch.channels_last))
        # A patch that is no power of two leaves the last stride a little off the grid.
        bottom = F.interpolate(self.bottom(x), size=features.shape[-2:], mode="bilinear", align_corners=False)
        x = self.merge(torch.cat([bottom, features], dim=1))
        presence = self.presence(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)).squeeze(1)
        for narrow, join, detail in zip(self.narrow, self.join, reversed(details), strict=True):
            # Narrow first: enlarging few channels is cheap.
            x = F.interpolate(narrow(x), size=detail.shape[-2:], mode="bilinear", align_corners=False)
            x = join(x + detail)
        return self.head(x), presence


def build_network(network: str, plan: EncoderPlan, channels: int) -> Segmenter | UNet:
    """Build what `finetune.network` names, with random weights; `channels` is the width of the ViT's head."""
    return UNet(plan) if network == "unet" else Segmenter(plan, channels)


def lesion_probability(logits: Tensor, presence: Tensor) -> Tensor:
    """Probability of each pixel (B, H, W): no pixel is likelier to be lesion than the image is to show one.

    Without that bound, a segmenter that learnt from lesions paints one into every image.

    Args:
        logits: (B, 1, H, W).
        presence: (B,) logits.
    """
    return torch.minimum(logits[:, 0].float().sigmoid(), presence.float().sigmoid().view(-1, 1, 1))
