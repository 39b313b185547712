"""Encoder and decoder that the 3D autoencoders share (3D MedDiffusion, arXiv 2412.13059)."""

from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn


class AutoencoderResnetBlock3D(nn.Module):
    """Pre-norm residual block: twice group norm, SiLU and a 3x3x3 convolution, beside a shortcut of the input.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; a 1x1x1 convolution joins the branches when they differ.
        groups: Groups of both group norms.
        eps: Epsilon of both group norms.
    """

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, in_channels, x, y, z)`` to ``(batch, out_channels, x, y, z)``."""
        shortcut = hidden_states
        hidden_states = self.conv1(norm_silu(self.norm1, hidden_states))
        hidden_states = self.conv2(norm_silu(self.norm2, hidden_states))
        if self.conv_shortcut is not None:
            shortcut = self.conv_shortcut(shortcut)
        return shortcut + hidden_states


class Attention3D(nn.Module):
    """Residual self-attention over all voxels of a map, taken in the order of its axes.

    Args:
        channels: Channels of the map.
        num_heads: Attention heads.
        head_dim: Width of a head.
        groups: Groups of the group norm.
        eps: Epsilon of the group norm.
    """

    def __init__(self, channels: int, num_heads: int, head_dim: int, *, groups: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps)
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, channels, x, y, z)`` to the same shape."""
        tokens = self.group_norm(hidden_states).flatten(2).transpose(1, 2)
        query, key, value = (
            projection(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.to_q, self.to_k, self.to_v)
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return hidden_states + self.to_out[0](attended).transpose(1, 2).reshape(hidden_states.shape)


class Downsample3D(nn.Module):
    """Halves every side with a 4x4x4 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 4, stride=2, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, channels, x, y, z)`` to ``(batch, channels, x/2, y/2, z/2)``."""
        return self.conv(hidden_states)


class Upsample3D(nn.Module):
    """Doubles every side with a transposed 4x4x4 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(channels, channels, 4, stride=2, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, channels, x, y, z)`` to ``(batch, channels, 2x, 2y, 2z)``."""
        return self.conv(hidden_states)


class AutoencoderDownBlock3D(nn.Module):
    """Two residual blocks and, except on the last level, a halving."""

    def __init__(self, in_channels: int, out_channels: int, add_downsample: bool, **norm) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            AutoencoderResnetBlock3D(width, out_channels, **norm) for width in (in_channels, out_channels)
        )
        self.downsamplers = nn.ModuleList([Downsample3D(out_channels)] if add_downsample else [])


class AutoencoderMidBlock3D(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, num_heads: int, head_dim: int, **norm) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(AutoencoderResnetBlock3D(channels, channels, **norm) for _ in range(2))
        self.attentions = nn.ModuleList([Attention3D(channels, num_heads, head_dim, **norm)])


class AutoencoderUpBlock3D(nn.Module):
    """Two residual blocks and, except on the last level, a doubling."""

    def __init__(self, in_channels: int, out_channels: int, add_upsample: bool, **norm) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            AutoencoderResnetBlock3D(width, out_channels, **norm) for width in (in_channels, out_channels)
        )
        self.upsamplers = nn.ModuleList([Upsample3D(out_channels)] if add_upsample else [])


class Encoder3D(nn.Module):
    """Convolutional encoder, ``(batch, in_channels, x, y, z)`` to ``2 ** (levels - 1)`` times smaller sides.

    Args:
        in_channels: Channels of the volume.
        out_channels: Channels of the result.
        block_out_channels: Width of each level, the finest first.
        num_attention_heads: Heads of the attention at the lowest resolution.
        attention_head_dim: Width of a head.
        norm_num_groups: Groups of the group norms.
        norm_eps: Epsilon of the group norms.
    """

    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_out_channels: tuple[int, ...],
        *,
        num_attention_heads: int,
        attention_head_dim: int,
        norm_num_groups: int,
        norm_eps: float,
    ) -> None:
        super().__init__()
        norm = {"groups": norm_num_groups, "eps": norm_eps}
        last = block_out_channels[-1]
        self.conv_in = nn.Conv3d(in_channels, block_out_channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        width = block_out_channels[0]
        for level, out_width in enumerate(block_out_channels):
            halves = level < len(block_out_channels) - 1
            self.down_blocks.append(AutoencoderDownBlock3D(width, out_width, halves, **norm))
            width = out_width
        self.mid_block = AutoencoderMidBlock3D(last, num_attention_heads, attention_head_dim, **norm)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, last, eps=norm_eps)
        self.conv_out = nn.Conv3d(last, out_channels, 3, padding=1)
        self.gradient_checkpointing = False

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, in_channels, x, y, z)`` to ``(batch, out_channels, x/f, y/f, z/f)``."""
        hidden_states = self.conv_in(sample)
        for block in cast("Iterable[AutoencoderDownBlock3D]", self.down_blocks):
            for layer in [*block.resnets, *block.downsamplers]:
                hidden_states = run_layer(self, layer, hidden_states)
        for layer in mid_layers(self.mid_block):
            hidden_states = run_layer(self, layer, hidden_states)
        return self.conv_out(norm_silu(self.conv_norm_out, hidden_states))


class Decoder3D(nn.Module):
    """Convolutional decoder, ``(batch, in_channels, x, y, z)`` to ``2 ** (levels - 1)`` times larger sides.

    A level doubles before the next one changes the width, as published: the last level opens with maps of
    ``block_out_channels[1]`` channels at full resolution, which is where memory peaks.

    Args:
        in_channels: Channels of the latent.
        out_channels: Channels of the volume.
        block_out_channels: Width of each level as in :class:`Encoder3D`, the finest first.
        num_attention_heads: Heads of the attention at the lowest resolution.
        attention_head_dim: Width of a head.
        norm_num_groups: Groups of the group norms.
        norm_eps: Epsilon of the group norms.
    """

    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_out_channels: tuple[int, ...],
        *,
        num_attention_heads: int,
        attention_head_dim: int,
        norm_num_groups: int,
        norm_eps: float,
    ) -> None:
        super().__init__()
        norm = {"groups": norm_num_groups, "eps": norm_eps}
        first, last = block_out_channels[-1], block_out_channels[0]
        self.conv_in = nn.Conv3d(in_channels, first, 3, padding=1)
        self.mid_block = AutoencoderMidBlock3D(first, num_attention_heads, attention_head_dim, **norm)
        self.up_blocks = nn.ModuleList()
        width = first
        for level, out_width in reversed(list(enumerate(block_out_channels))):
            self.up_blocks.append(AutoencoderUpBlock3D(width, out_width, level > 0, **norm))
            width = out_width
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, last, eps=norm_eps)
        self.conv_out = nn.Conv3d(last, out_channels, 3, padding=1)
        self.gradient_checkpointing = False

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, in_channels, x, y, z)`` to ``(batch, out_channels, f*x, f*y, f*z)``."""
        hidden_states = self.conv_in(latents)
        for layer in mid_layers(self.mid_block):
            hidden_states = run_layer(self, layer, hidden_states)
        for block in cast("Iterable[AutoencoderUpBlock3D]", self.up_blocks):
            for layer in [*block.resnets, *block.upsamplers]:
                hidden_states = run_layer(self, layer, hidden_states)
        return self.conv_out(norm_silu(self.conv_norm_out, hidden_states))


def norm_silu(norm: nn.GroupNorm, hidden_states: torch.Tensor) -> torch.Tensor:
    """Group norm, then SiLU, in place where no gradient needs the normalised map."""
    return F.silu(norm(hidden_states), inplace=not torch.is_grad_enabled())


def mid_layers(mid_block: AutoencoderMidBlock3D) -> list[nn.Module]:
    """The layers of a mid block in the order in which they run."""
    return [mid_block.resnets[0], mid_block.attentions[0], mid_block.resnets[1]]


def run_layer(network: Encoder3D | Decoder3D, layer: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """Apply a layer, recomputing it in the backward pass if the network checkpoints gradients."""
    if torch.is_grad_enabled() and network.gradient_checkpointing:
        return network._gradient_checkpointing_func(layer, hidden_states)
    return layer(hidden_states)
