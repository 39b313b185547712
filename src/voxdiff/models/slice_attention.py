"""Factorised attention of FDM and cDPM (arXiv 2205.11495, 2212.08034): over the slices at each pixel, then in each slice.

Slice positions enter here only: as distances between any two slices, in Shaw et al.'s relative self-attention
(arXiv 1803.02155) with small networks instead of tables, so that positions may be any real numbers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from voxdiff.models.layers_3d import zero_module
from voxdiff.models.layers_informed_slice import TokenAttention
from voxdiff.models.slice_convolution import SliceNeighbours


@dataclass
class SliceSet:
    """What the layers need to know of the slices that share a network call.

    Attributes:
        temb: Embedding of the diffusion time ``(batch, temb_channels)``, before its activation.
        distances: Features of the signed distance between slots ``(batch, slots, slots, 3)``.
        valid: ``(batch, slots)``, False for padding; None if there is none.
        neighbours: The slots next to each; None where no layer asks.
    """

    temb: torch.Tensor
    distances: torch.Tensor
    valid: torch.Tensor | None
    neighbours: SliceNeighbours | None = None

    @property
    def slots(self) -> int:
        """Number of slots of each sample."""
        return self.distances.shape[1]


def distance_features(positions: torch.Tensor) -> torch.Tensor:
    """Describe how far slot i lies behind slot j.

    Args:
        positions: ``(batch, slots)`` in slices.

    Returns:
        ``(batch, slots, slots, 3)`` at ``[:, i, j]``, in float32: ln(1 + distance) where i lies behind j, the same where
        it lies before j, and 1 where both lie at one position.
    """
    distance = positions.float()[:, :, None] - positions.float()[:, None, :]
    return torch.stack([distance.clamp(min=0).log1p(), (-distance).clamp(min=0).log1p(), (distance == 0).float()], -1)


class RelativePositionNetwork(nn.Module):
    """From a distance between two slots and the diffusion time to a vector for each head; zero at initialisation."""

    def __init__(self, channels: int, temb_channels: int) -> None:
        super().__init__()
        self.distance_proj = nn.Linear(3, channels)
        self.time_emb_proj = nn.Linear(temb_channels, channels)
        self.out = zero_module(nn.Linear(channels, channels))

    def forward(self, slices: SliceSet, head_dim: int) -> torch.Tensor:
        """Return ``(batch, heads, slots, slots, head_dim)``."""
        hidden_states = self.distance_proj(slices.distances) + self.time_emb_proj(slices.temb)[:, None, None]
        return self.out(F.silu(hidden_states)).unflatten(3, (-1, head_dim)).permute(0, 3, 1, 2, 4)


class MaskedGroupNorm(nn.GroupNorm):
    """Group norm of ``(batch, channels, tokens)`` whose statistics may leave tokens out."""

    def forward(self, hidden_states: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise by the statistics of the tokens that ``counted`` ``(batch, tokens)`` marks; None: of all tokens."""
        if counted is None:
            return super().forward(hidden_states)
        # A sum of squares in 16 bit would overflow.
        grouped = hidden_states.float().unflatten(1, (self.num_groups, -1))
        weight = counted[:, None, None].float()
        number = (weight.sum(3, keepdim=True) * grouped.shape[2]).clamp(min=1)
        centred = grouped - (grouped * weight).sum((2, 3), keepdim=True) / number
        variance = (centred.square() * weight).sum((2, 3), keepdim=True) / number
        normed = (centred * torch.rsqrt(variance + self.eps)).flatten(1, 2).to(hidden_states.dtype)
        return normed * self.weight[:, None] + self.bias[:, None]


class SliceAttention(TokenAttention):
    """Relative self-attention over the slices at each pixel.

    With q scaled by ``head_dim ** -0.5``, the logit of slot i for slot j is ``q_i k_j + q_i R^k_ij + k_j R^q_ji``, and
    slot i gathers ``v_j + R^v_ij``. The vectors R depend on positions and time only, not on the pixel.

    Args:
        channels: Channels of input and output.
        head_dim: Width of an attention head.
        temb_channels: Width of the time embedding.
        groups: Groups of the group norm.
        eps: Epsilon of the group norm.
        masked_norm: Whether padding is left out of the norm's statistics. Attention always ignores it; the published
            network's norm does not.
    """

    def __init__(
        self, channels: int, head_dim: int, temb_channels: int, *, groups: int, eps: float, masked_norm: bool
    ) -> None:
        super().__init__(channels, head_dim)
        self.masked_norm = masked_norm
        self.group_norm = MaskedGroupNorm(groups, channels, eps=eps)
        self.relative_q = RelativePositionNetwork(channels, temb_channels)
        self.relative_k = RelativePositionNetwork(channels, temb_channels)
        self.relative_v = RelativePositionNetwork(channels, temb_channels)
        zero_module(self.to_out)

    def forward(self, hidden_states: torch.Tensor, slices: SliceSet) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normalised input and what attention adds, each ``(batch * slots, channels, x, y)``."""
        window = hidden_states.unflatten(0, (-1, slices.slots))
        batch, grid = window.shape[0], window.shape[3:]
        tokens = window.permute(0, 3, 4, 2, 1).flatten(0, 2)
        counted = slices.valid if self.masked_norm else None
        if counted is not None:
            counted = counted.repeat_interleave(grid.numel(), dim=0)
        normed = self.group_norm(tokens, counted)
        attended = self.attend_slots(normed.transpose(1, 2).unflatten(0, (batch, -1)), slices)

        normed = normed.unflatten(0, (batch, *grid)).permute(0, 4, 3, 1, 2).flatten(0, 1)
        attended = attended.unflatten(1, grid).permute(0, 3, 4, 1, 2).flatten(0, 1)
        return normed, attended

    def attend_slots(self, tokens: torch.Tensor, slices: SliceSet) -> torch.Tensor:
        """Map ``(batch, pixels, slots, channels)`` to what every slot gathers from the slots of its pixel."""
        query, key, value = (
            project(tokens).unflatten(3, (-1, self.head_dim)).transpose(2, 3)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        query = query * self.head_dim**-0.5
        logits = query @ key.transpose(3, 4)
        logits = logits + torch.einsum("bphic,bhijc->bphij", query, self.relative_k(slices, self.head_dim))
        scaled_key = key * self.head_dim**-0.5
        logits = logits + torch.einsum("bphjc,bhjic->bphij", scaled_key, self.relative_q(slices, self.head_dim))
        if slices.valid is not None:
            alike = slices.valid[:, :, None] == slices.valid[:, None, :]
            logits = logits.masked_fill(~alike[:, None, None], float("-inf"))
        # The relative values need the weights themselves, which fused attention does not give.
        weights = logits.softmax(dim=-1)
        gathered = weights @ value
        gathered = gathered + torch.einsum("bphij,bhijc->bphic", weights, self.relative_v(slices, self.head_dim))
        return self.to_out[0](gathered.transpose(2, 3).flatten(3))


class PixelAttention(TokenAttention):
    """Self-attention over the pixels of each slice."""

    def __init__(self, channels: int, head_dim: int, *, groups: int, eps: float) -> None:
        super().__init__(channels, head_dim)
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps)
        zero_module(self.to_out)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normalised input and what attention adds, each ``(batch * slots, channels, x, y)``."""
        grid = hidden_states.shape[2:]
        normed = self.group_norm(hidden_states.flatten(2))
        attended = self.attend(normed.transpose(1, 2)).transpose(1, 2)
        return normed.unflatten(2, grid), attended.unflatten(2, grid)


class FactorizedAttention(nn.Module):
    """Attention over the slices at each pixel, then over the pixels of each slice.

    Args:
        channels: Channels of input and output.
        head_dim: Width of an attention head.
        temb_channels: Width of the time embedding.
        groups: Groups of both group norms.
        eps: Epsilon of both group norms.
        masked_norm: Whether padding is left out of the statistics over slices.
        pre_norm_residual: Whether each attention is added to its input; the published network adds it to the normalised
            input.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int,
        temb_channels: int,
        *,
        groups: int,
        eps: float,
        masked_norm: bool,
        pre_norm_residual: bool,
    ) -> None:
        super().__init__()
        self.pre_norm_residual = pre_norm_residual
        self.slice_attention = SliceAttention(
            channels, head_dim, temb_channels, groups=groups, eps=eps, masked_norm=masked_norm
        )
        self.pixel_attention = PixelAttention(channels, head_dim, groups=groups, eps=eps)

    def forward(self, hidden_states: torch.Tensor, slices: SliceSet) -> torch.Tensor:
        """Map ``(batch * slots, channels, x, y)`` to the same shape."""
        normed, attended = self.slice_attention(hidden_states, slices)
        hidden_states = (hidden_states if self.pre_norm_residual else normed) + attended
        normed, attended = self.pixel_attention(hidden_states)
        return (hidden_states if self.pre_norm_residual else normed) + attended
