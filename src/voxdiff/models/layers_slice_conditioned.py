"""Blocks of the slice-conditioned U-Net (FDM, arXiv 2205.11495): diffusers' 2D layers with factorised attention.

Everywhere ``(batch * slots, channels, x, y)``, the slots of a sample one after the other; ``temb`` is the embedding of
each slot, before its activation.
"""

from typing import Any

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from voxdiff.models.layers_3d import CheckpointedBlock, zero_module
from voxdiff.models.slice_attention import FactorizedAttention, SliceSet
from voxdiff.models.slice_convolution import SliceConvolution


class SliceConditionedBlock(CheckpointedBlock):
    """Residual blocks of one resolution, each followed by attention where ``attentions`` says so.

    Args:
        widths: Channels of the input and the output of each residual block.
        temb_channels: Width of the time embedding.
        attentions: Number of attention layers: one a residual block, one less (in the middle) or none.
        num_heads: Heads of each attention.
        groups: Groups of the group norms.
        eps: Epsilon of the group norms.
        scale_shift_norm: Whether the embedding scales and shifts the second norm's output; else it is added before it.
        attention: Further arguments of :class:`~voxdiff.models.slice_attention.FactorizedAttention`.
    """

    def __init__(
        self,
        widths: list[tuple[int, int]],
        temb_channels: int,
        *,
        attentions: int,
        num_heads: int,
        groups: int,
        eps: float,
        scale_shift_norm: bool,
        **attention: bool,
    ) -> None:
        super().__init__()
        resnet: dict[str, Any] = {"temb_channels": temb_channels, "groups": groups, "eps": eps}
        resnet["time_embedding_norm"] = "scale_shift" if scale_shift_norm else "default"
        self.resnets = nn.ModuleList(_make_resnet(*width, **resnet) for width in widths)
        self.attentions = nn.ModuleList(
            FactorizedAttention(width, width // num_heads, temb_channels, groups=groups, eps=eps, **attention)
            for _, width in widths[:attentions]
        )

    def _layer(self, index: int, hidden_states: torch.Tensor, temb: torch.Tensor, slices: SliceSet) -> torch.Tensor:
        hidden_states = self._run(self.resnets[index], hidden_states, temb)
        if index < len(self.attentions):
            hidden_states = self._run(self.attentions[index], hidden_states, slices)
        return hidden_states


def _make_resnet(in_channels: int, out_channels: int, **options: Any) -> ResnetBlock2D:
    """A residual block that is its shortcut at first."""
    resnet = ResnetBlock2D(in_channels=in_channels, out_channels=out_channels, **options)
    zero_module(resnet.conv2)
    return resnet


class SliceConditionedDownBlock(SliceConditionedBlock):
    """Layers of one encoder level and, except on the last, a halving; returns every map for the decoder.

    With ``slice_convolution`` each layer is preceded by a convolution over neighbouring slices.
    """

    def __init__(
        self,
        widths: list[tuple[int, int]],
        temb_channels: int,
        *,
        add_downsample: bool,
        slice_convolution: bool = False,
        **layers: Any,
    ) -> None:
        super().__init__(widths, temb_channels, **layers)
        self.convolutions = nn.ModuleList(SliceConvolution(width) for width, _ in widths if slice_convolution)
        # Under another name the layer would register its convolution twice.
        halving = [Downsample2D(widths[-1][1], use_conv=True, name="op")] if add_downsample else []
        self.downsamplers = nn.ModuleList(halving)

    def forward(
        self, hidden_states: torch.Tensor, temb: torch.Tensor, slices: SliceSet
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the output and the maps after each layer, the output among them."""
        maps = []
        for index in range(len(self.resnets)):
            if self.convolutions:
                hidden_states = self._run(self.convolutions[index], hidden_states, slices.neighbours)
            hidden_states = self._layer(index, hidden_states, temb, slices)
            maps.append(hidden_states)
        for downsample in self.downsamplers:
            hidden_states = self._run(downsample, hidden_states)
            maps.append(hidden_states)
        return hidden_states, maps


class SliceConditionedMidBlock(SliceConditionedBlock):
    """A residual block, attention and another residual block at the lowest resolution."""

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor, slices: SliceSet) -> torch.Tensor:
        """Map ``(batch * slots, channels, x, y)`` to the same shape."""
        for index in range(len(self.resnets)):
            hidden_states = self._layer(index, hidden_states, temb, slices)
        return hidden_states


class SliceConditionedUpBlock(SliceConditionedBlock):
    """Layers of one decoder level, each joined by the last map left of the encoder, and, except on the last, a doubling."""

    def __init__(self, widths: list[tuple[int, int]], temb_channels: int, *, add_upsample: bool, **layers: Any) -> None:
        super().__init__(widths, temb_channels, **layers)
        self.upsamplers = nn.ModuleList([Upsample2D(widths[-1][1], use_conv=True)] if add_upsample else [])

    def forward(
        self,
        hidden_states: torch.Tensor,
        maps: list[torch.Tensor],
        temb: torch.Tensor,
        slices: SliceSet,
        *,
        keep: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the output; takes one map a layer off the end of ``maps``.

        ``keep`` are the slots, as indices into the first axis, that are still wanted after the last layer.
        """
        for index in range(len(self.resnets)):
            hidden_states = self._layer(index, torch.cat([hidden_states, maps.pop()], dim=1), temb, slices)
        if keep is not None:
            hidden_states = hidden_states[keep]
        for upsample in self.upsamplers:
            hidden_states = self._run(upsample, hidden_states)
        return hidden_states
