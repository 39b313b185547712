"""Windows of one wave, cut out of the volumes of a call as one batch and written back.

The batch holds all volumes of the first window, then all volumes of the next: a volume's windows keep their order.
"""

from collections.abc import Sequence

import torch

from voxdiff.pipelines.base import Generators
from voxdiff.pipelines.known_slices import KnownSlices
from voxdiff.pipelines.slice_windows import SliceWindow


def cut_windows(windows: Sequence[SliceWindow], volumes: torch.Tensor) -> torch.Tensor:
    """``(windows * batch, channels, x, y, slices)`` of volumes ``(batch, channels, x, y, z)``."""
    return torch.cat([volumes[..., window.first : window.first + window.length] for window in windows])


def gather_conditions(
    windows: Sequence[SliceWindow], volumes: torch.Tensor, mask_latents: torch.Tensor, informed: torch.Tensor | None
) -> torch.Tensor:
    """What the network sees beside the noisy latents, ``(windows * batch, channels, x, y, slices)``.

    Args:
        windows: Of one wave.
        volumes: Latents ``(batch, channels, x, y, z)`` as far as they are generated.
        mask_latents: Of the same shape.
        informed: Given informed slices ``(batch, channels, x, y)``; None for a network without.
    """
    masks = cut_windows(windows, mask_latents)
    if informed is None:
        return masks
    slices = [informed if window.informed is None else volumes[..., window.informed] for window in windows]
    return torch.cat([masks, torch.cat(slices)[..., None].expand_as(masks)], dim=1)


def gather_known(windows: Sequence[SliceWindow], volumes: torch.Tensor, noise: str) -> KnownSlices:
    """The slices of each window that earlier waves generated, shown with `noise`."""
    rows = [[number in window.known for number in window.slices] for window in windows]
    slots = torch.tensor(rows, device=volumes.device).repeat_interleave(len(volumes), dim=0)
    return KnownSlices(values=cut_windows(windows, volumes), slots=slots, noise=noise)


def write_windows(windows: Sequence[SliceWindow], made: torch.Tensor, volumes: torch.Tensor) -> None:
    """Write the slices that each window generates into the volumes, in place."""
    for window, values in zip(windows, made.chunk(len(windows)), strict=True):
        for number in window.generated:
            volumes[..., number] = values[..., number - window.first]


def spread_generators(generator: Generators, batch: int, windows: int = 1) -> Generators:
    """One generator an entry of the batch of windows; windows of one volume draw from its generator in their order.

    A volume thus draws the same numbers in any company, and one generator for all draws them one after the other.
    """
    if generator is None:
        return None
    return (generator if isinstance(generator, list) else [generator] * batch) * windows
