"""A plain U-Net, as a reference from outside: what the same training makes of a network without our encoder."""

from __future__ import annotations

from torch import Tensor, nn

from amlp.models.encoder import EncoderPlan

# MONAI's own, for five strides and the last layer.
_WIDTHS = (32, 32, 64, 128, 256, 32)
_GROUPS = 8


class UNet(nn.Module):
    """MONAI's BasicUNet with the widths that MONAI proposes, behind the segmenter's interface.

    At 96 x 96 pixels and a batch of 8, forward and backward took 0.40 s on one CPU thread, the ViT segmenter of
    params.yaml 0.34 s: this reference is given about the same computation, a little more. Channels are normalised in
    groups, as in the segmenter, because batches are small.

    Args:
        plan: of the encoder that it stands in for; the images' channels and size are all that counts.
    """

    def __init__(self, plan: EncoderPlan) -> None:
        super().__init__()
        # Inside the function: MONAI loads every submodule it has, which takes seconds.
        from monai.networks.nets import BasicUNet

        self.plan = plan
        self.net = BasicUNet(
            spatial_dims=2,
            in_channels=plan.channels,
            out_channels=1,
            features=_WIDTHS,
            norm=("group", {"num_groups": _GROUPS}),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Segment normalised images (B, C, H, W), 16 pixels a side at least.

        Returns:
            Logits (B, 1, H, W) that a pixel belongs to a lesion, and logits (B,) that the image shows any lesion: the
            highest pixel's, for a U-Net has no output for the whole image.
        """
        logits = self.net(images)
        return logits, logits.amax(dim=(1, 2, 3))
