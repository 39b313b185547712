"""How the slices of a window that are already generated are shown to the network."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from voxdiff.pipelines.base import Generators

KNOWN_SLICE_NOISES = ("clean", "matched", "official")


@dataclass(frozen=True, kw_only=True)
class KnownSlices:
    """Known slices of a batch of windows.

    They are written into the network's input before each of its calls; what the scheduler makes of them in between has
    no influence on the other slices.

    Attributes:
        values: Clean latents ``(batch, channels, x, y, slices)``; what lies in unknown slots does not matter.
        slots: ``(batch, slices)``, True where a slice is known.
        noise: ``"clean"``: without noise. ``"matched"``: with fresh noise of the level of the other slices (the paper's
            Algorithm 1; on an exact score the seam is wider and the known slice more often at the wrong place).
            ``"official"``: the released code's level, which takes the count-down of the steps for a training timestep,
            so that the slice is nearly clean after the first step.
    """

    values: torch.Tensor
    slots: torch.Tensor
    noise: str = "clean"

    def write(
        self,
        network_input: torch.Tensor,
        scheduler: Any,
        index: int,
        timestep: torch.Tensor,
        generator: Generators = None,
    ) -> torch.Tensor:
        """The network's input with the known slices in their slots.

        Args:
            network_input: Noisy latents ``(batch, channels, x, y, slices)`` as the scheduler scaled them.
            scheduler: One of the supported schedulers, timesteps set.
            index: Number of the network's call.
            timestep: The current timestep.
            generator: Draws the noise of a whole window, whatever is known of it.
        """
        if not self.slots.any():
            return network_input
        shown = self.values
        if self.noise != "clean":
            noise = randn_tensor(shown.shape, generator=generator, device=shown.device, dtype=shown.dtype)
            add_noise = _add_official_noise if self.noise == "official" else _add_matched_noise
            shown = add_noise(scheduler, shown, noise, index, timestep)
        return self._choose(shown, network_input)

    def restore(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents with the known slices as they were given."""
        return self._choose(self.values, latents)

    def _choose(self, known: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return torch.where(self.slots[:, None, None, None, :], known, others)


def check_known_slice_noise(noise: str, scheduler: Any) -> None:
    """Raise ValueError if the rule is unknown or the scheduler has no such noise levels."""
    if noise not in KNOWN_SLICE_NOISES:
        raise ValueError(f"known_slice_noise is {noise!r}; use one of {', '.join(map(repr, KNOWN_SLICE_NOISES))}.")
    if noise == "official" and not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"known_slice_noise is 'official', but {type(scheduler).__name__} has no training timesteps with a noise level; "
            "use 'clean' or 'matched'."
        )


def _add_matched_noise(
    scheduler: Any, known: torch.Tensor, noise: torch.Tensor, index: int, timestep: torch.Tensor
) -> torch.Tensor:
    timesteps = timestep.reshape(1).expand(len(known))
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(known, timesteps, noise)
    return scheduler.scale_model_input(scheduler.add_noise(known, noise, timesteps), timestep)


def _add_official_noise(
    scheduler: Any, known: torch.Tensor, noise: torch.Tensor, index: int, timestep: torch.Tensor
) -> torch.Tensor:
    steps = len(scheduler.timesteps)
    alpha_bar = float(scheduler.alphas_cumprod[steps - index if index else -1])
    return alpha_bar**0.5 * known + (1 - alpha_bar) ** 0.5 * noise
