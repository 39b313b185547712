"""What informed-slice diffusion learns: slices one by one, windows of slices, and slices at a position (GEM-3D).

Latents of whole volumes come in, ``(batch, channels, x, y, slices)``; windows and slices are drawn from them with each
sample's own stream. The informed slice is always one of the volume's own (paper, section 3.2).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from voxdiff.models.slice_positions import position_context, slice_position
from voxdiff.training.batches import SampleNoise
from voxdiff.training.diffusion_target import diffuse

TIMESTEP_WEIGHTINGS = ("published", "uniform")


class SliceObjective:
    """Mean squared error of a 2D network on the slices of a window, each at a time of its own (GEM-3D, stage 1).

    Args:
        scheduler: Its ``prediction_type`` sets the target.
        window: Slices of a window.
        informed_slice: False for Make-A-Volume, whose network sees the masks alone.
    """

    def __init__(self, scheduler: Any, *, window: int = 16, informed_slice: bool = True) -> None:
        self.scheduler = scheduler
        self.window = window
        self.informed_slice = informed_slice

    def __call__(self, model: nn.Module, batch: dict[str, Any], noise: SampleNoise) -> torch.Tensor:
        """Loss of one batch.

        Args:
            model: :class:`diffusers.UNet2DModel` over ``noised, mask, informed slice``, possibly wrapped by Accelerate.
            batch: ``image`` and ``mask``, latents ``(batch, channels, x, y, slices)``.
            noise: Draws windows, informed slices, timesteps and noise.

        Raises:
            ValueError: If the volumes have fewer slices than a window.
        """
        images, masks = draw_windows(batch, self.window, noise)
        conditions = [masks]
        if self.informed_slice:
            conditions.append(repeated_slice(images, noise.integers(self.window)))
        noised, timesteps, target = diffuse(self.scheduler, _as_samples(images), _NoiseOfSlices(noise, self.window))
        sample = torch.cat([noised, *map(_as_samples, conditions)], dim=1)[..., 0]
        prediction = model(sample, timesteps, return_dict=False)[0]
        return F.mse_loss(prediction.float(), target[..., 0])


class VolumeTuningObjective:
    """Mean squared error on windows of slices that share one time (GEM-3D, volumetric tuning).

    A network with a known-slice indicator also learns to continue a volume: in some windows, slices from one end inwards
    are known. They are given clean, are left out of the loss, and the innermost one is the informed slice, as it is when
    a volume is generated window by window.

    Args:
        scheduler: Its ``prediction_type`` sets the target.
        window: Slices of a window.
        informed_slice: False for Make-A-Volume.
        known_share: Share of the windows with known slices, for a network with a known-slice indicator; None without.
        timestep_weighting: ``"published"`` draws t with a weight of 2T - t, twice as often near the data as near the
            noise (the published code; not in the paper), ``"uniform"`` all alike.

    Raises:
        ValueError: On an unknown weighting, or known slices where they cannot be.
    """

    def __init__(
        self,
        scheduler: Any,
        *,
        window: int = 16,
        informed_slice: bool = True,
        known_share: float | None = None,
        timestep_weighting: str = "published",
    ) -> None:
        if timestep_weighting not in TIMESTEP_WEIGHTINGS:
            raise ValueError(
                f"The timestep weighting is {timestep_weighting!r}; choose one of {', '.join(TIMESTEP_WEIGHTINGS)}."
            )
        if known_share is not None and not (informed_slice and window > 1 and 0 <= known_share <= 1):
            raise ValueError(
                f"The share of windows with known slices is {known_share}; give one from 0 to 1 to a model with an "
                "informed slice and at least two slices a window."
            )
        self.scheduler = scheduler
        self.window = window
        self.informed_slice = informed_slice
        self.known_share = known_share
        self.timestep_weighting = timestep_weighting

    def __call__(self, model: nn.Module, batch: dict[str, Any], noise: SampleNoise) -> torch.Tensor:
        """Loss of one batch: the mean over each window's unknown slices, then over the windows.

        Args:
            model: :class:`voxdiff.InformedSliceUNetModel`, possibly wrapped by Accelerate.
            batch: ``image`` and ``mask``, latents ``(batch, channels, x, y, slices)``.
            noise: Draws windows, known and informed slices, timesteps and noise.

        Raises:
            ValueError: If the volumes have fewer slices than a window.
        """
        images, masks = draw_windows(batch, self.window, noise)
        conditions = [masks]
        known = torch.zeros(len(images), self.window, dtype=torch.bool)
        if self.informed_slice:
            informed = noise.integers(self.window)
            if self.known_share is not None:
                known, informed = self._known_slices(informed, noise)
            conditions.append(repeated_slice(images, informed))
        known = known.to(images.device)
        times = noise if self.timestep_weighting == "uniform" else _NoiseNearTheData(noise)
        noised, timesteps, target = diffuse(self.scheduler, images, times)
        noised = torch.where(known[:, None, None, None], images, noised)
        indicator = {} if self.known_share is None else {"known": known}
        sample = torch.cat([noised, *conditions], dim=1)
        prediction = model(sample, timesteps, **indicator, return_dict=False)[0]
        errors = (prediction.float() - target).square().mean((1, 2, 3))
        return (errors.masked_fill(known, 0.0).sum(1) / (~known).sum(1)).mean()

    def _known_slices(self, informed: torch.Tensor, noise: SampleNoise) -> tuple[torch.Tensor, torch.Tensor]:
        """Which slices are known ``(batch, window)``, and the informed ones, the innermost known where there are any."""
        assert self.known_share is not None
        continues = noise.uniform() < self.known_share
        number = 1 + noise.integers(self.window - 1)
        from_above = noise.integers(2).bool()
        place = torch.arange(self.window)
        first, last = place < number[:, None], place >= self.window - number[:, None]
        known = torch.where(from_above[:, None], last, first) & continues[:, None]
        innermost = torch.where(from_above, self.window - number, number - 1)
        return known, torch.where(continues, innermost, informed)


class SliceGeneratorObjective:
    """Mean squared error of a 2D network on single slices, told their position in the volume (GEM-3D, informed slices).

    Args:
        scheduler: Its ``prediction_type`` sets the target.
        slices_per_volume: Slices drawn from each volume of a batch, uniformly and with repetition.
        position_rule: How a slice's index becomes a position, see :func:`voxdiff.models.slice_positions.slice_position`.
        context_dim: Length of the position's embedding, the network's ``cross_attention_dim``.
    """

    def __init__(
        self, scheduler: Any, *, slices_per_volume: int = 4, position_rule: str = "inclusive", context_dim: int = 128
    ) -> None:
        self.scheduler = scheduler
        self.slices_per_volume = slices_per_volume
        self.position_rule = position_rule
        self.context_dim = context_dim

    def __call__(self, model: nn.Module, batch: dict[str, Any], noise: SampleNoise) -> torch.Tensor:
        """Loss of one batch.

        Args:
            model: :class:`diffusers.UNet2DConditionModel`, possibly wrapped by Accelerate.
            batch: ``image``, latents ``(batch, channels, x, y, slices)``.
            noise: Draws slices, timesteps and noise.
        """
        volumes = batch["image"]
        depth = volumes.shape[-1]
        own = _NoiseOfSlices(noise, self.slices_per_volume)
        places = own.integers(depth)
        owners = range(len(volumes))
        volume_of_slice = [owner for owner in owners for _ in range(self.slices_per_volume)]
        slices = torch.stack([volumes[owner, ..., place] for owner, place in zip(volume_of_slice, places, strict=True)])
        positions = torch.tensor([slice_position(place, depth, self.position_rule) for place in places.tolist()])
        context = position_context(positions, self.context_dim).to(slices)
        noised, timesteps, target = diffuse(self.scheduler, slices[..., None], own)
        prediction = model(noised[..., 0], timesteps, context, return_dict=False)[0]
        return F.mse_loss(prediction.float(), target[..., 0])


def draw_windows(batch: dict[str, Any], length: int, noise: SampleNoise) -> tuple[torch.Tensor, torch.Tensor]:
    """The same random window of each volume's image and mask; all starts are equally likely, the last one included.

    Args:
        batch: ``image`` and ``mask``, latents ``(batch, channels, x, y, slices)``.
        length: Slices of a window.
        noise: Draws the starts.

    Raises:
        ValueError: If the volumes have fewer slices than a window.
    """
    depth = batch["image"].shape[-1]
    if depth < length:
        raise ValueError(f"The volumes have {depth} slices, fewer than a window of {length}; lower --window.")
    starts = noise.integers(depth - length + 1).tolist()
    images, masks = (
        torch.stack([volume[..., start : start + length] for volume, start in zip(batch[name], starts, strict=True)])
        for name in ("image", "mask")
    )
    return images, masks


def repeated_slice(windows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """One slice of each window ``(batch, channels, x, y, slices)`` beside every slice of it, in the same shape."""
    chosen = torch.stack([window[..., place] for window, place in zip(windows, places.tolist(), strict=True)])
    return chosen[..., None].expand_as(windows)


class _NoiseOfSlices(SampleNoise):
    """Each slice as a sample; those of one volume draw from its stream in turn."""

    def __init__(self, noise: SampleNoise, slices: int) -> None:
        self.generators = [generator for generator in noise.generators for _ in range(slices)]


class _NoiseNearTheData(SampleNoise):
    """Integers below ``high`` with a weight of ``2 high - integer``."""

    def __init__(self, noise: SampleNoise) -> None:
        self.generators = noise.generators

    def integers(self, high: int) -> torch.Tensor:
        """One integer in ``[0, high)`` per sample, on the CPU."""
        weights = 2 * high - torch.arange(high, dtype=torch.float64)
        return torch.cat([torch.multinomial(weights, 1, generator=generator) for generator in self.generators])


def _as_samples(windows: torch.Tensor) -> torch.Tensor:
    """Windows ``(batch, channels, x, y, slices)`` as volumes of one slice ``(batch * slices, channels, x, y, 1)``."""
    return windows.movedim(-1, 1).flatten(0, 1)[..., None]
