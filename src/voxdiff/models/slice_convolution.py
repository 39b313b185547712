"""Convolution over neighbouring slices of a set whose slices lie anywhere."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from voxdiff.models.layers_3d import zero_module


@dataclass
class SliceNeighbours:
    """The next slot below and the next one above each slot, of ``slots`` slots that follow each other over the batch.

    Attributes:
        below: ``(slots,)``, index of the one below; any where there is none.
        above: ``(slots,)``, that of the one above.
        distances: ``(slots, 2)``, ln(1 + distance) to both, 0 where there is none.
        present: ``(slots, 2)``, 1 where there is one, else 0.
    """

    below: torch.Tensor
    above: torch.Tensor
    distances: torch.Tensor
    present: torch.Tensor


def find_neighbours(positions: torch.Tensor, valid: torch.Tensor | None = None) -> SliceNeighbours:
    """The neighbours of every slot in its own sample.

    Args:
        positions: ``(batch, slots)`` in slices.
        valid: ``(batch, slots)``, 0 or False for padding, which is nobody's neighbour; None: no padding.
    """
    batch, slots = positions.shape
    distance = positions.float()[:, :, None] - positions.float()[:, None, :]
    if valid is not None:
        distance = distance.masked_fill(~valid.bool()[:, None, :], 0)
    to_below, below = distance.masked_fill(distance <= 0, torch.inf).min(dim=2)
    to_above, above = (-distance).masked_fill(distance >= 0, torch.inf).min(dim=2)
    offsets = slots * torch.arange(batch, device=positions.device)[:, None]
    gaps = torch.stack([to_below, to_above], dim=-1).flatten(0, 1)
    present = gaps.isfinite()
    return SliceNeighbours(
        below=(below + offsets).flatten(),
        above=(above + offsets).flatten(),
        distances=gaps.masked_fill(~present, 0).log1p(),
        present=present.float(),
    )


class SliceConvolution(nn.Module):
    """Adds to each slice what a linear map makes of its two neighbours, weighed by channel and distance; zero at first.

    Attention over slices works on coarse maps only; this lets slices agree at full resolution, at little cost.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.distance_proj = nn.Linear(4, channels)
        self.weight_proj = nn.Linear(channels, 2 * channels)
        self.conv = zero_module(nn.Conv2d(2 * channels, channels, 1))

    def forward(self, hidden_states: torch.Tensor, neighbours: SliceNeighbours) -> torch.Tensor:
        """Map ``(batch * slots, channels, x, y)`` to the same shape."""
        described = torch.cat([neighbours.distances, neighbours.present], dim=1).to(hidden_states.dtype)
        weights = 1 + self.weight_proj(F.silu(self.distance_proj(described)))
        present = neighbours.present.repeat_interleave(hidden_states.shape[1], dim=1)
        gathered = torch.cat([hidden_states[neighbours.below], hidden_states[neighbours.above]], dim=1)
        weighed = gathered * (weights * present.to(weights.dtype))[:, :, None, None]
        return hidden_states + self.conv(weighed)
