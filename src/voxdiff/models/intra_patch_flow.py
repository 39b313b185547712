"""The intra-patch flow of BiFlowNet (3D MedDiffusion, Wang et al. 2024): a small transformer inside each sub-volume."""

import torch
import torch.nn.functional as F
from torch import nn

from voxdiff.models.layers_3d import CheckpointedBlock, zero_module
from voxdiff.models.layers_biflownet_3d import BiFlowResnetBlock3D, SelfAttention

BLOCKS = ("dit", "unet")


class IntraPatchFlow(CheckpointedBlock):
    """Four feature maps of a volume in which no sub-volume knows another.

    The volume is cut into cubes, each cube into tokens. Two input blocks, the middle blocks and two output blocks, which
    take the input blocks' tokens as skips, work on every cube alone; a zero-initialised head after each input and output
    block gives one map, so that the flow is silent at initialisation.

    Args:
        in_channels: Channels of the volume.
        channels: Width of the tokens and of the maps, a multiple of 6.
        temb_channels: Width of the embedding.
        block: ``"dit"`` (published) or ``"unet"``, convolutional residual blocks in place of the transformer's (the
            paper's ablation).
        sub_volume_size: Edge of a cube in voxels of the volume.
        token_size: Edge of a token in voxels of the volume; it divides ``sub_volume_size``.
        num_mid_layers: Number of middle blocks.
        num_heads: Attention heads of a ``"dit"`` block.
        mlp_ratio: Width of a ``"dit"`` block's hidden layer over ``channels``.
        groups: Group norms' groups of a ``"unet"`` block.
        eps: Group norms' epsilon of a ``"unet"`` block.
    """

    pos_embed: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        channels: int,
        temb_channels: int,
        *,
        block: str = "dit",
        sub_volume_size: int = 8,
        token_size: int = 1,
        num_mid_layers: int = 1,
        num_heads: int = 8,
        mlp_ratio: int = 4,
        groups: int = 24,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.token_size = token_size
        self.tokens_per_edge = sub_volume_size // token_size

        def make_block(with_skip: bool = False) -> nn.Module:
            if block == "dit":
                return DiTBlock(channels, temb_channels, num_heads, mlp_ratio, with_skip=with_skip)
            return SubVolumeResnetBlock(channels, temb_channels, with_skip=with_skip, groups=groups, eps=eps)

        def make_heads() -> nn.ModuleList:
            return nn.ModuleList(TokenHead(channels, temb_channels, token_size) for _ in range(2))

        self.patch_embed = nn.Conv3d(in_channels, channels, token_size, stride=token_size)
        self.register_buffer("pos_embed", position_embedding(channels, self.tokens_per_edge))
        self.in_blocks = nn.ModuleList(make_block() for _ in range(2))
        self.in_heads = make_heads()
        self.mid_blocks = nn.ModuleList(make_block() for _ in range(num_mid_layers))
        self.out_blocks = nn.ModuleList(make_block(with_skip=True) for _ in range(2))
        self.out_heads = make_heads()

    def forward(self, sample: torch.Tensor, temb: torch.Tensor) -> list[torch.Tensor]:
        """Make the four maps, each ``(batch, channels, x, y, z)``.

        Args:
            sample: ``(batch, in_channels, x, y, z)``, sizes divisible by ``sub_volume_size``.
            temb: Activated embedding ``(batch, temb_channels)``.
        """
        embedded = self.patch_embed(sample)
        cubes = [size // self.tokens_per_edge for size in embedded.shape[2:]]
        tokens = self._split(embedded, cubes) + self.pos_embed
        maps, skips = [], []
        for block, head in zip(self.in_blocks, self.in_heads, strict=True):
            tokens = self._run(block, tokens, temb)
            skips.append(tokens)
            maps.append(self._join(self._run(head, tokens, temb), cubes))
        for block in self.mid_blocks:
            tokens = self._run(block, tokens, temb)
        for block, head in zip(self.out_blocks, self.out_heads, strict=True):
            tokens = self._run(block, tokens, temb, skips.pop())
            maps.append(self._join(self._run(head, tokens, temb), cubes))
        return maps

    def _split(self, embedded: torch.Tensor, cubes: list[int]) -> torch.Tensor:
        """Tokens ``(batch, channels, x, y, z)`` to ``(batch, cubes, tokens, channels)``, both scanned along z first."""
        for axis, number in zip((2, 4, 6), cubes, strict=True):
            embedded = embedded.unflatten(axis, (number, self.tokens_per_edge))
        return embedded.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4, 6).flatten(1, 3)

    def _join(self, patches: torch.Tensor, cubes: list[int]) -> torch.Tensor:
        """Patches ``(batch, cubes, tokens, token_size³ * channels)`` to a map ``(batch, channels, x, y, z)``."""
        patches = patches.unflatten(3, (*[self.token_size] * 3, -1)).unflatten(2, [self.tokens_per_edge] * 3)
        patches = patches.unflatten(1, cubes).permute(0, 10, 1, 4, 7, 2, 5, 8, 3, 6, 9)
        return patches.flatten(8, 10).flatten(5, 7).flatten(2, 4)


class Modulation(nn.Module):
    """Zero-initialised vectors that modulate the tokens of a sample, from its activated embedding (adaLN-zero)."""

    def __init__(self, channels: int, temb_channels: int, number: int) -> None:
        super().__init__()
        self.number = number
        self.linear = zero_module(nn.Linear(temb_channels, number * channels))

    def forward(self, temb: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map ``(batch, temb_channels)`` to vectors ``(batch, 1, 1, channels)``."""
        return self.linear(temb)[:, None, None].chunk(self.number, dim=-1)


class FeedForward(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, hidden_channels)
        self.linear_2 = nn.Linear(hidden_channels, channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens, channels last, to tokens of the same shape."""
        return self.linear_2(F.gelu(self.linear_1(tokens), approximate="tanh"))


class DiTBlock(nn.Module):
    """Transformer block with adaLN-zero (Peebles & Xie 2023) whose tokens attend within their own sub-volume.

    Args:
        channels: Width of the tokens.
        temb_channels: Width of the embedding.
        num_heads: Attention heads; they divide ``channels``.
        mlp_ratio: Width of the hidden layer over ``channels``.
        with_skip: Whether the block merges the tokens of an earlier one first.
    """

    def __init__(
        self, channels: int, temb_channels: int, num_heads: int, mlp_ratio: int, *, with_skip: bool = False
    ) -> None:
        super().__init__()
        self.skip_linear = nn.Linear(2 * channels, channels) if with_skip else None
        self.attn = SelfAttention(channels, num_heads, channels // num_heads, qkv_bias=True)
        self.ff = FeedForward(channels, mlp_ratio * channels)
        for linear in [layer for layer in self.modules() if isinstance(layer, nn.Linear)]:
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.adaln = Modulation(channels, temb_channels, 6)

    def forward(self, tokens: torch.Tensor, temb: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """Map tokens ``(batch, cubes, tokens, channels)`` and an activated embedding to tokens of the same shape."""
        if self.skip_linear is not None and skip is not None:
            tokens = self.skip_linear(torch.cat([tokens, skip], dim=-1))
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = self.adaln(temb)
        modulated = _modulate(tokens, shift_attn, scale_attn)
        attended = self.attn(modulated.flatten(0, 1)).view_as(tokens)
        tokens = tokens + gate_attn * attended
        return tokens + gate_ff * self.ff(_modulate(tokens, shift_ff, scale_ff))


class SubVolumeResnetBlock(nn.Module):
    """Convolutional residual block that sees one sub-volume at a time, zero-padded at its faces."""

    def __init__(self, channels: int, temb_channels: int, *, with_skip: bool = False, groups: int, eps: float) -> None:
        super().__init__()
        in_channels = 2 * channels if with_skip else channels
        self.resnet = BiFlowResnetBlock3D(in_channels, channels, temb_channels, groups=groups, eps=eps)

    def forward(self, tokens: torch.Tensor, temb: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """Map tokens ``(batch, cubes, tokens, channels)`` and an activated embedding to tokens of the same shape."""
        if skip is not None:
            tokens = torch.cat([tokens, skip], dim=-1)
        cubes, edge = tokens.shape[1], round(tokens.shape[2] ** (1 / 3))
        volumes = tokens.flatten(0, 1).transpose(1, 2).unflatten(2, [edge] * 3)
        volumes = self.resnet(volumes, temb.repeat_interleave(cubes, dim=0))
        return volumes.flatten(2).transpose(1, 2).unflatten(0, (-1, cubes))


class TokenHead(nn.Module):
    """Normalised and modulated tokens to the voxels that they cover; zero at initialisation."""

    def __init__(self, channels: int, temb_channels: int, token_size: int) -> None:
        super().__init__()
        self.adaln = Modulation(channels, temb_channels, 2)
        self.proj_out = zero_module(nn.Linear(channels, token_size**3 * channels))

    def forward(self, tokens: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Map tokens ``(batch, cubes, tokens, channels)`` to ``(batch, cubes, tokens, token_size³ * channels)``."""
        shift, scale = self.adaln(temb)
        return self.proj_out(_modulate(tokens, shift, scale))


def position_embedding(channels: int, tokens_per_edge: int) -> torch.Tensor:
    """Fixed sine-cosine position of every token in its cube, ``(1, tokens, channels)``: a third of the channels an axis."""
    frequencies = 1e4 ** (-torch.arange(channels // 6, dtype=torch.float64) / (channels // 6))
    angles = torch.arange(tokens_per_edge, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    places = torch.cartesian_prod(*[torch.arange(tokens_per_edge)] * 3)
    return axis[places].flatten(1)[None].float()


def _modulate(tokens: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift
