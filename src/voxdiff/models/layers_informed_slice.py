"""Layers of the informed-slice U-Net (GEM-3D, arXiv 2403.12852): spatial layers, each followed by one along the slices.

Everywhere ``(batch * slices, channels, x, y)``, the slices of a window one after the other. A volumetric layer is the
identity at initialisation, so that a network of these layers starts as its spatial part alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from voxdiff.models.layers_3d import CheckpointedBlock, zero_module


class SliceConv(nn.Module):
    """Convolution of width 3 along the slices, with zeros beyond both ends of the window; the identity at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.dirac_(torch.empty(channels, channels, 3)))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden_states: torch.Tensor, slices: int) -> torch.Tensor:
        """Map ``(batch * slices, channels, x, y)`` to the same shape."""
        # As an image of slices times pixels it needs no copy in channels_last.
        grid = hidden_states.shape[2:]
        image = hidden_states.unflatten(0, (-1, slices)).transpose(1, 2).flatten(3)
        image = F.conv2d(image, self.weight.unsqueeze(-1), self.bias, padding=(1, 0))
        return image.unflatten(3, grid).transpose(1, 2).flatten(0, 1)


class InformedSliceResnetBlock(nn.Module):
    """Residual block: group norm, SiLU, both convolutions and the time embedding, then the same without the embedding.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; a 1x1 convolution joins the branches when they differ.
        temb_channels: Width of the time embedding.
        groups: Groups of both group norms.
        eps: Epsilon of both group norms.
    """

    def __init__(self, in_channels: int, out_channels: int, temb_channels: int, *, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv1_vol = SliceConv(out_channels)
        self.time_emb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv2_vol = SliceConv(out_channels)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor, slices: int) -> torch.Tensor:
        """Map the input and an activated embedding ``(batch * slices, temb_channels)`` to the output."""
        shortcut = hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states)
        hidden_states = self.conv1_vol(self.conv1(F.silu(self.norm1(hidden_states))), slices)
        hidden_states = hidden_states + self.time_emb_proj(temb)[:, :, None, None]
        return shortcut + self.conv2_vol(self.conv2(F.silu(self.norm2(hidden_states))), slices)


class TokenAttention(nn.Module):
    """Self-attention over tokens ``(batch, tokens, channels)``, without a norm or a residual connection."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def attend(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what every token gathers from all tokens."""
        query, key, value = (
            project(tokens).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        dtype = query.dtype
        if query.device.type == "cpu":  # whose 16-bit kernel is slower, its backward pass several times
            query, key, value = (tensor.float() for tensor in (query, key, value))
        gathered = F.scaled_dot_product_attention(query, key, value).to(dtype)
        return self.to_out[0](gathered.transpose(1, 2).flatten(2))


class InformedSliceAttention(TokenAttention):
    """Self-attention over the pixels of each slice, then over the slices at each pixel.

    Both normalise with the same group norm, over the tokens that they attend to. Neither knows positions: only the
    convolutions see the order of the slices.
    """

    def __init__(self, channels: int, head_dim: int, *, groups: int, eps: float) -> None:
        super().__init__(channels, head_dim)
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps)
        self.vol = TokenAttention(channels, head_dim)
        zero_module(self.vol.to_out)

    def forward(self, hidden_states: torch.Tensor, slices: int) -> torch.Tensor:
        """Map ``(batch * slices, channels, x, y)`` to the same shape."""
        grid = hidden_states.shape[2:]
        normed = self.group_norm(hidden_states.flatten(2))
        # The sum takes the layout of its first term, channels_last, which spares the convolutions along the slices a copy.
        hidden_states = self.attend(normed.transpose(1, 2)).transpose(1, 2).unflatten(2, grid) + hidden_states

        window = hidden_states.unflatten(0, (-1, slices))
        normed = self.group_norm(window.permute(0, 3, 4, 2, 1).flatten(0, 2))
        attended = self.vol.attend(normed.transpose(1, 2)).unflatten(0, (-1, *grid))
        return (window + attended.permute(0, 3, 4, 1, 2)).flatten(0, 1)


class Downsample(nn.Module):
    """Halve every slice by a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.conv_vol = SliceConv(channels)

    def forward(self, hidden_states: torch.Tensor, slices: int) -> torch.Tensor:
        """Map ``(batch * slices, channels, x, y)`` to half the size."""
        return self.conv_vol(self.conv(hidden_states), slices)


class Upsample(nn.Module):
    """Double every slice: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_vol = SliceConv(channels)

    def forward(self, hidden_states: torch.Tensor, slices: int) -> torch.Tensor:
        """Map ``(batch * slices, channels, x, y)`` to twice the size."""
        return self.conv_vol(self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest")), slices)


class InformedSliceBlock(CheckpointedBlock):
    """Residual blocks of one resolution, each followed by attention where ``head_dim`` is given.

    Args:
        widths: Channels of the input and the output of each residual block.
        temb_channels: Width of the time embedding.
        attentions: Number of attention layers: one a residual block, one less (in the middle) or none.
        head_dim: Width of an attention head.
        groups: Groups of the group norms.
        eps: Epsilon of the group norms.
    """

    def __init__(
        self,
        widths: list[tuple[int, int]],
        temb_channels: int,
        *,
        attentions: int,
        head_dim: int,
        groups: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            InformedSliceResnetBlock(*width, temb_channels, groups=groups, eps=eps) for width in widths
        )
        self.attentions = nn.ModuleList(
            InformedSliceAttention(width, head_dim, groups=groups, eps=eps) for _, width in widths[:attentions]
        )

    def _layer(self, index: int, hidden_states: torch.Tensor, temb: torch.Tensor, slices: int) -> torch.Tensor:
        hidden_states = self._run(self.resnets[index], hidden_states, temb, slices)
        if index < len(self.attentions):
            hidden_states = self._run(self.attentions[index], hidden_states, slices)
        return hidden_states


class InformedSliceDownBlock(InformedSliceBlock):
    """Layers of one encoder level and, except on the last, a halving; returns every map for the decoder."""

    def __init__(self, widths: list[tuple[int, int]], temb_channels: int, *, add_downsample: bool, **layers) -> None:
        super().__init__(widths, temb_channels, **layers)
        self.downsamplers = nn.ModuleList([Downsample(widths[-1][1])] if add_downsample else [])

    def forward(
        self, hidden_states: torch.Tensor, temb: torch.Tensor, slices: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the output and the maps after each layer, the output among them."""
        maps = []
        for index in range(len(self.resnets)):
            hidden_states = self._layer(index, hidden_states, temb, slices)
            maps.append(hidden_states)
        for downsample in self.downsamplers:
            hidden_states = self._run(downsample, hidden_states, slices)
            maps.append(hidden_states)
        return hidden_states, maps


class InformedSliceMidBlock(InformedSliceBlock):
    """A residual block, attention and another residual block at the lowest resolution."""

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor, slices: int) -> torch.Tensor:
        """Map ``(batch * slices, channels, x, y)`` to the same shape."""
        for index in range(len(self.resnets)):
            hidden_states = self._layer(index, hidden_states, temb, slices)
        return hidden_states


class InformedSliceUpBlock(InformedSliceBlock):
    """Layers of one decoder level, each joined by a map of the encoder, and, except on the last, a doubling."""

    def __init__(self, widths: list[tuple[int, int]], temb_channels: int, *, add_upsample: bool, **layers) -> None:
        super().__init__(widths, temb_channels, **layers)
        self.upsamplers = nn.ModuleList([Upsample(widths[-1][1])] if add_upsample else [])

    def forward(
        self, hidden_states: torch.Tensor, maps: Sequence[torch.Tensor], temb: torch.Tensor, slices: int
    ) -> torch.Tensor:
        """Return the output; `maps` are one a layer in the order in which they were made: the first layer takes the last."""
        for index, skip in enumerate(reversed(maps)):
            hidden_states = self._layer(index, torch.cat([hidden_states, skip], dim=1), temb, slices)
        for upsample in self.upsamplers:
            hidden_states = self._run(upsample, hidden_states, slices)
        return hidden_states
