"""What latent diffusion learns: the scheduler's prediction target on normalised latents (3D MedDiffusion, section III-C)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from voxdiff.models.volume_conditions import NULL_LABEL
from voxdiff.training.batches import SampleNoise
from voxdiff.training.diffusion_target import diffuse

LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss}


class LatentDiffusionObjective:
    """Mean loss of the network on noised latents, its conditions dropped now and then.

    Args:
        scheduler: Its ``prediction_type`` sets the target.
        loss_type: ``"l1"`` (the published code) or ``"l2"`` (the paper).
        label_dropout: Share of the samples that lose their label and all scalars together, for classifier-free guidance;
            the network's ``null_condition``.
        scalar_dropout: Share of the samples that lose a scalar, drawn for each scalar on its own, so that any of them
            may be left out when sampling; the network's ``optional_scalars``.

    Raises:
        ValueError: On an unknown loss or a share outside of [0, 1).
    """

    def __init__(
        self, scheduler: Any, *, loss_type: str = "l1", label_dropout: float = 0.0, scalar_dropout: float = 0.0
    ) -> None:
        if loss_type not in LOSSES:
            raise ValueError(f"The loss is {loss_type!r}; choose one of {', '.join(LOSSES)}.")
        for name, share in (("label_dropout", label_dropout), ("scalar_dropout", scalar_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} is {share}; give a share from 0 up to, but not, 1.")
        self.scheduler = scheduler
        self.loss = LOSSES[loss_type]
        self.label_dropout = label_dropout
        self.scalar_dropout = scalar_dropout

    def __call__(self, model: nn.Module, batch: dict[str, Any], noise: SampleNoise) -> torch.Tensor:
        """Loss of one batch.

        Args:
            model: The network, possibly wrapped by Accelerate.
            batch: ``latents`` ``(batch, channels, x, y, z)``, normalised; where the model is conditioned so,
                ``class_labels`` ``(batch,)`` and ``scalars`` ``(batch, number)``, NaN where absent.
            noise: Source of timesteps, noise and dropped conditions.
        """
        noised, timesteps, target = diffuse(self.scheduler, batch["latents"], noise)
        conditions = self._dropped({key: batch[key] for key in ("class_labels", "scalars") if key in batch}, noise)
        prediction = model(noised, timesteps, **conditions, return_dict=False)[0]
        return self.loss(prediction.float(), target)

    def _dropped(self, conditions: dict[str, torch.Tensor], noise: SampleNoise) -> dict[str, torch.Tensor]:
        dropped = dict(conditions)
        without_any = (noise.uniform() < self.label_dropout) if self.label_dropout else None
        for name, absent in (("class_labels", NULL_LABEL), ("scalars", torch.nan)):
            if name in dropped and without_any is not None:
                value = dropped[name]
                rows = without_any.to(value.device).view(-1, *[1] * (value.ndim - 1))
                dropped[name] = value.masked_fill(rows, absent)
        if "scalars" in dropped and self.scalar_dropout:
            scalars = dropped["scalars"]
            draws = torch.stack([noise.uniform() for _ in range(scalars.shape[1])], dim=1)
            dropped["scalars"] = scalars.masked_fill((draws < self.scalar_dropout).to(scalars.device), torch.nan)
        return dropped
