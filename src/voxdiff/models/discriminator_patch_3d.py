"""The 3D PatchGAN that judges volumes while an autoencoder is trained (Isola et al. 2017, in three dimensions)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from voxdiff.models.axis_order import check_axis_order, from_network, to_network
from voxdiff.models.base import VolumeModel

_SLOPE = 0.2


@dataclass
class PatchDiscriminator3DOutput(BaseOutput):
    """Output of :class:`PatchDiscriminator3D`.

    Attributes:
        logits: ``(batch, 1, x, y, z)``, one a patch of the volume; high for real ones.
        features: The activated maps of all blocks before the logits, in the network's axis order.
    """

    logits: torch.Tensor
    features: tuple[torch.Tensor, ...]


class PatchDiscriminatorBlock3D(nn.Module):
    """4x4x4 convolution with padding 2 and, if asked for, batch norm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, normalize: bool) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 4, stride=stride, padding=2)
        self.norm = nn.BatchNorm3d(out_channels) if normalize else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, in_channels, x, y, z)`` to ``(batch, out_channels, ...)``, sides ``floor(side / stride) + 1``."""
        hidden_states = self.conv(hidden_states)
        return hidden_states if self.norm is None else self.norm(hidden_states)


class PatchDiscriminator3D(VolumeModel):
    """Strided convolutions to one logit a patch; the defaults are the published configuration of 3D MedDiffusion.

    Args:
        in_channels: Channels of the volume.
        base_channels: Width of the first block, doubled by each of the next.
        num_layers: Blocks of stride 2; one of stride 1 and the logits follow.
        axis_order: Order in which the network sees x, y and z: ``"xyz"``, or ``"zxy"`` for published weights.

    Raises:
        ValueError: On an unknown ``axis_order``.
    """

    @register_to_config
    def __init__(
        self, in_channels: int = 1, base_channels: int = 32, num_layers: int = 3, axis_order: str = "xyz"
    ) -> None:
        super().__init__()
        check_axis_order(axis_order)
        self.blocks = nn.ModuleList()
        width = in_channels
        for layer in range(num_layers + 1):
            out_width = base_channels * 2**layer
            stride = 2 if layer < num_layers else 1
            self.blocks.append(PatchDiscriminatorBlock3D(width, out_width, stride, normalize=layer > 0))
            width = out_width
        self.blocks.append(PatchDiscriminatorBlock3D(width, 1, stride=1, normalize=False))

    def forward(
        self, sample: torch.Tensor, return_dict: bool = True
    ) -> PatchDiscriminator3DOutput | tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Judge ``(batch, in_channels, x, y, z)``.

        Raises:
            ValueError: If the channels do not fit.
        """
        if sample.ndim != 5 or sample.shape[1] != self.config["in_channels"]:
            raise ValueError(
                f"The discriminator got a tensor of shape {tuple(sample.shape)}; it takes (batch, "
                f"{self.config['in_channels']}, x, y, z)."
            )
        hidden_states = to_network(sample, self.config["axis_order"])
        features = []
        for block in self.blocks[:-1]:
            hidden_states = F.leaky_relu(block(hidden_states), _SLOPE)
            features.append(hidden_states)
        logits = from_network(self.blocks[-1](hidden_states), self.config["axis_order"])
        output = PatchDiscriminator3DOutput(logits=logits, features=tuple(features))
        return output if return_dict else output.to_tuple()
