"""What a latent diffusion network is conditioned on: time, class, named scalars and the size of the grid."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import nn

from voxdiff.models.base import VolumeModel
from voxdiff.models.layers_3d import expand_timesteps

NULL_LABEL = -1


class ConditionedVolumeModel(VolumeModel):
    """Network with one embedding of all conditions, ``8 * time_channels`` wide.

    Time, class and scalars are added to each other; the grid's size stands beside them. A subclass has the config keys
    ``num_class_embeds``, ``null_condition``, ``optional_scalars``, ``scalar_conditions`` and ``resolution_scale`` and
    calls :meth:`_add_condition_embeddings` in its ``__init__``.
    """

    def _add_condition_embeddings(
        self,
        time_channels: int,
        num_class_embeds: int | None,
        null_condition: bool,
        optional_scalars: bool,
        scalar_conditions: dict[str, Any] | None,
    ) -> int:
        """Add the embedding modules and return the width of the embedding that blocks receive."""
        width = 4 * time_channels
        self.time_proj = Timesteps(time_channels, flip_sin_to_cos=False, downscale_freq_shift=1)
        self.time_embedding = TimestepEmbedding(time_channels, width, act_fn="gelu")
        self.resolution_embedding = TimestepEmbedding(3, width, act_fn="silu")
        if num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds + null_condition, width)
        if scalar_conditions:
            check_scalar_conditions(scalar_conditions)
            inputs = len(scalar_conditions) * (1 + (null_condition or optional_scalars))
            self.scalar_embedding = TimestepEmbedding(inputs, width, act_fn="silu")
        return 2 * width

    @property
    def scalar_names(self) -> list[str]:
        """Names of the scalar conditions in the order of ``scalars``' columns."""
        conditions = self.config["scalar_conditions"] or {}
        return sorted(conditions, key=lambda name: conditions[name]["place"])

    def reset_class_embedding(
        self,
        num_class_embeds: int,
        *,
        kept: Mapping[int, int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Replace the class table by a new one for fine-tuning on other classes; everything else stays.

        New rows are drawn from the distribution of the old ones, so that the network receives embeddings of the size it
        was trained on. The row of the null label is kept.

        Args:
            num_class_embeds: Number of new classes.
            kept: New label -> old label of the classes whose rows are copied.
            generator: Source of the random rows, on the CPU.

        Raises:
            ValueError: If the model has no classes, ``num_class_embeds`` is not positive, or a kept label is in no table.
        """
        known = self.config["num_class_embeds"]
        if known is None:
            raise ValueError("The model has no class table to replace; fine-tune a class-conditional model.")
        if num_class_embeds < 1:
            raise ValueError(f"num_class_embeds is {num_class_embeds}; give the number of new classes, at least 1.")
        kept = kept or {}
        if not (set(kept) <= set(range(num_class_embeds)) and set(kept.values()) <= set(range(known))):
            raise ValueError(
                f"kept is {dict(kept)}; give new labels from 0 to {num_class_embeds - 1} -> old ones from 0 to {known - 1}."
            )
        old = self.class_embedding.weight.detach()
        noise = torch.randn(num_class_embeds, old.shape[1], generator=generator).to(old)
        rows = old[:known].mean(dim=0) + old[:known].std(dim=0, correction=0) * noise
        rows[list(kept)] = old[list(kept.values())]
        self.class_embedding = nn.Embedding.from_pretrained(torch.cat([rows, old[known:]]), freeze=False)
        self.register_to_config(num_class_embeds=num_class_embeds)

    def _embed_conditions(
        self,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None,
        scalars: torch.Tensor | None,
        sample: torch.Tensor,
    ) -> torch.Tensor:
        """Activated embedding ``(batch, 2 * width)`` of a sample in the network's own axis order."""
        batch = sample.shape[0]
        timesteps = self.time_proj(expand_timesteps(timestep, sample))
        embedding = self.time_embedding(timesteps.to(sample.dtype))
        rows = self._class_rows(class_labels, batch)
        if rows is not None:
            embedding = embedding + self.class_embedding(rows)
        standardised = self._standardised_scalars(scalars, batch)
        if standardised is not None:
            embedding = embedding + self.scalar_embedding(standardised.to(sample.dtype))
        grid = [size / self.config["resolution_scale"] for size in sample.shape[2:]]
        resolution = self.resolution_embedding(torch.tensor([grid], device=sample.device, dtype=sample.dtype))
        return F.silu(torch.cat([embedding, resolution.expand(batch, -1)], dim=1))

    def _class_rows(self, class_labels: torch.Tensor | None, batch: int) -> torch.Tensor | None:
        number = self.config["num_class_embeds"]
        if number is None:
            if class_labels is not None:
                raise ValueError("Class labels were given to an unconditional model; leave class_labels out.")
            return None
        lowest = NULL_LABEL if self.config["null_condition"] else 0
        allowed = f"one label from {lowest} to {number - 1} for each of the {batch} samples"
        if class_labels is None:
            raise ValueError(f"The model is class-conditional, but got no class_labels; pass {allowed}.")
        if class_labels.shape != (batch,) or class_labels.is_floating_point():
            raise ValueError(
                f"class_labels have shape {tuple(class_labels.shape)} and type {class_labels.dtype}; pass whole numbers, "
                f"{allowed}."
            )
        outside = (class_labels < lowest) | (class_labels >= number)
        if not torch.compiler.is_compiling() and outside.any():
            raise ValueError(f"A class label is {int(class_labels[outside][0])}; pass {allowed}.")
        return torch.where(class_labels == NULL_LABEL, number, class_labels)

    def _standardised_scalars(self, scalars: torch.Tensor | None, batch: int) -> torch.Tensor | None:
        """Scalars in float32, mean 0 and standard deviation 1, followed by whether each is present, if it may be absent."""
        names, conditions = self.scalar_names, self.config["scalar_conditions"]
        if not names:
            if scalars is not None:
                raise ValueError("Scalars were given to a model without scalar conditions; leave scalars out.")
            return None
        may_be_absent = self.config["optional_scalars"] or self.config["null_condition"]
        wanted = f"pass a tensor ({batch}, {len(names)}) of {', '.join(names)}"
        if scalars is None:
            absence = ", NaN where absent" if may_be_absent else ""
            raise ValueError(f"The model is conditioned on scalars, but got none; {wanted}{absence}.")
        if scalars.shape != (batch, len(names)):
            raise ValueError(f"scalars have shape {tuple(scalars.shape)}; {wanted}.")
        absent = scalars.isnan()
        if not torch.compiler.is_compiling():
            if scalars.isinf().any():
                raise ValueError(f"A scalar is infinite; {wanted}.")
            self._check_absent(absent, wanted)
        scalars = scalars.float()
        mean, std = (scalars.new_tensor([conditions[name][key] for name in names]) for key in ("mean", "std"))
        values = (scalars - mean) / std
        if not may_be_absent:
            return values
        return torch.cat([values.masked_fill(absent, 0.0), (~absent).float()], dim=1)

    def _check_absent(self, absent: torch.Tensor, wanted: str) -> None:
        if self.config["optional_scalars"] or not absent.any():
            return
        if not self.config["null_condition"]:
            raise ValueError(f"A scalar is NaN, but the model was trained without absent scalars; {wanted}.")
        if (absent.any(dim=1) & ~absent.all(dim=1)).any():
            raise ValueError(
                f"Some scalars of a sample are NaN, but the model was trained with all or none of them; {wanted}."
            )


def check_scalar_conditions(scalar_conditions: dict[str, Any]) -> None:
    """Raise ValueError unless every entry is ``{"place", "mean", "std"}``, the places 0, 1, ... and the std positive."""
    for name, entry in scalar_conditions.items():
        if set(entry) != {"place", "mean", "std"} or entry["std"] <= 0:
            raise ValueError(
                f"The scalar condition {name!r} is {entry}; give place, mean and std, the last of which is positive."
            )
    places = sorted(entry["place"] for entry in scalar_conditions.values())
    if places != list(range(len(places))):
        raise ValueError(f"The scalar conditions have the places {places}; number them from 0 to {len(places) - 1}.")
