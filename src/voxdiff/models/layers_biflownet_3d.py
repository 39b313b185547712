"""Blocks of the inter-patch U-Net of BiFlowNet (3D MedDiffusion, Wang et al. 2024), shared with its ControlNet."""

import torch
import torch.nn.functional as F
from torch import nn

from voxdiff.models.layers_3d import CheckpointedBlock
from voxdiff.models.layers_autoencoder_3d import Downsample3D, Upsample3D


class BiFlowResnetBlock3D(nn.Module):
    """Residual block that normalises after its convolutions.

    3x3x3 convolution, group norm, [scale and shift from the embedding], SiLU, then 3x3x3 convolution, group norm, SiLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; a 1x1x1 convolution joins the branches when they differ.
        temb_channels: Width of the embedding; None: unconditioned.
        groups: Groups of both group norms.
        eps: Epsilon of both group norms.
    """

    def __init__(
        self, in_channels: int, out_channels: int, temb_channels: int | None, *, groups: int = 24, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.time_emb_proj = None if temb_channels is None else nn.Linear(temb_channels, 2 * out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv_shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        """Map ``(batch, in_channels, x, y, z)`` and an activated embedding ``(batch, temb_channels)`` to the output."""
        shortcut = hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states)
        hidden_states = self.norm1(self.conv1(hidden_states))
        if self.time_emb_proj is not None:
            scale, shift = self.time_emb_proj(temb)[:, :, None, None, None].chunk(2, dim=1)
            hidden_states = hidden_states * (1 + scale) + shift
        hidden_states = self.norm2(self.conv2(F.silu(hidden_states)))
        return shortcut + F.silu(hidden_states)


class SelfAttention(nn.Module):
    """Multi-head attention of tokens over each other.

    Args:
        channels: Width of the tokens.
        num_heads: Attention heads.
        head_dim: Width of a head.
        qkv_bias: Whether queries, keys and values have a bias.
    """

    def __init__(self, channels: int, num_heads: int, head_dim: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, num_heads * head_dim, bias=qkv_bias)
        self.to_k = nn.Linear(channels, num_heads * head_dim, bias=qkv_bias)
        self.to_v = nn.Linear(channels, num_heads * head_dim, bias=qkv_bias)
        self.to_out = nn.ModuleList([nn.Linear(num_heads * head_dim, channels)])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens ``(batch, tokens, channels)`` to the same shape."""
        query, key, value = (
            projection(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.to_q, self.to_k, self.to_v)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.to_out[0](attended.transpose(1, 2).flatten(2))


class SpatialAttention3D(SelfAttention):
    """Residual attention over all voxels of a map whose voxels are normalised over their channels."""

    def __init__(self, channels: int, num_heads: int, head_dim: int) -> None:
        super().__init__(channels, num_heads, head_dim, qkv_bias=False)
        self.norm = nn.LayerNorm(channels, eps=1e-5, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, channels, x, y, z)`` to the same shape."""
        tokens = self.norm(hidden_states.flatten(2).transpose(1, 2))
        return hidden_states + super().forward(tokens).transpose(1, 2).unflatten(2, hidden_states.shape[2:])


class BiFlowDownBlock3D(CheckpointedBlock):
    """Two residual blocks of one resolution, each with attention where the level has it, then a halving convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Width of the level.
        add_downsample: Whether a 4x4x4 convolution of stride 2 ends the level.
        attention: ``num_heads`` and ``head_dim`` of the attention; None: no attention.
        resnet: Arguments of the residual blocks.
    """

    def __init__(
        self, in_channels: int, out_channels: int, add_downsample: bool, attention: dict[str, int] | None, **resnet
    ) -> None:
        super().__init__()
        widths = (in_channels, out_channels)
        self.resnets = nn.ModuleList(BiFlowResnetBlock3D(width, out_channels, **resnet) for width in widths)
        self.attentions = nn.ModuleList(
            [] if attention is None else [SpatialAttention3D(out_channels, **attention) for _ in widths]
        )
        self.downsamplers = nn.ModuleList([Downsample3D(out_channels)] if add_downsample else [])

    def forward(
        self, hidden_states: torch.Tensor, temb: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Return the next level's input and the level's two saved maps, in the order in which they were made."""
        saved = []
        for index, resnet in enumerate(self.resnets):
            hidden_states = self._run(resnet, hidden_states, temb)
            if self.attentions:
                hidden_states = self._run(self.attentions[index], hidden_states)
            saved.append(hidden_states)
        for downsampler in self.downsamplers:
            hidden_states = downsampler(hidden_states)
        return hidden_states, (saved[0], saved[1])


class BiFlowMidBlock3D(CheckpointedBlock):
    """Residual block, attention and residual block at the lowest resolution."""

    def __init__(self, channels: int, attention: dict[str, int], **resnet) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(BiFlowResnetBlock3D(channels, channels, **resnet) for _ in range(2))
        self.attentions = nn.ModuleList([SpatialAttention3D(channels, **attention)])

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, channels, x, y, z)`` and an activated embedding to the same shape."""
        hidden_states = self._run(self.resnets[0], hidden_states, temb)
        hidden_states = self._run(self.attentions[0], hidden_states)
        return self._run(self.resnets[1], hidden_states, temb)


class BiFlowUpBlock3D(CheckpointedBlock):
    """Two residual blocks that take one saved map each, then a doubling transposed convolution.

    Args:
        channels: Width of the level, of its input and of both saved maps.
        out_channels: Width of the next level.
        add_upsample: Whether a 4x4x4 transposed convolution of stride 2 ends the level.
        attention: ``num_heads`` and ``head_dim`` of the attention; None: no attention.
        resnet: Arguments of the residual blocks.
    """

    def __init__(
        self, channels: int, out_channels: int, add_upsample: bool, attention: dict[str, int] | None, **resnet
    ) -> None:
        super().__init__()
        widths = (channels, out_channels)
        self.resnets = nn.ModuleList(BiFlowResnetBlock3D(2 * channels, width, **resnet) for width in widths)
        self.attentions = nn.ModuleList(
            [] if attention is None else [SpatialAttention3D(width, **attention) for width in widths]
        )
        self.upsamplers = nn.ModuleList([Upsample3D(out_channels)] if add_upsample else [])

    def forward(
        self, hidden_states: torch.Tensor, saved: tuple[torch.Tensor, torch.Tensor], temb: torch.Tensor
    ) -> torch.Tensor:
        """Consume the two saved maps of the matching down block, the last one first."""
        for index, (resnet, skip) in enumerate(zip(self.resnets, reversed(saved), strict=True)):
            hidden_states = self._run(resnet, torch.cat([hidden_states, skip], dim=1), temb)
            if self.attentions:
                hidden_states = self._run(self.attentions[index], hidden_states)
        for upsampler in self.upsamplers:
            hidden_states = upsampler(hidden_states)
        return hidden_states
