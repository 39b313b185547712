"""What one call asks of each volume: its class and its scalars, checked against what the model takes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging

from voxdiff.pipelines.patch_volume_classes import VolumeClass, find_class, list_classes
from voxdiff.volumes import VolumeProcessor

logger = logging.get_logger(__name__)

Labels = str | int | Sequence[str | int] | None
Scalars = Mapping[str, float | Sequence[float]] | None


@dataclass(frozen=True, kw_only=True)
class VolumeRequest:
    """Conditions of one volume.

    Attributes:
        processor: Grid, spacing and intensity rule: those of its class, or of the pipeline.
        name: Name of its class; None where the model has none, or draws without one.
        label: Label of its class.
        scalars: Name -> number of the scalar conditions that are given.
    """

    processor: VolumeProcessor
    name: str | None = None
    label: int | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is no condition."""
        return self.label is None and not self.scalars

    def describe(
        self, size: Sequence[int], resampled_to: Sequence[float] | None, guidance_scale: float
    ) -> dict[str, Any]:
        """The conditions of a volume generated on a grid of `size`, as plain values for its record."""
        spacing = self.processor.spacing
        return {
            "class": self.name,
            "class_label": self.label,
            "scalars": dict(self.scalars),
            "guidance_scale": float(guidance_scale),
            "size": [int(count) for count in size],
            "spacing": list(spacing) if spacing else None,
            "resampled_to": [float(edge) for edge in resampled_to] if resampled_to else None,
        }


def count_volumes(batch_size: int, class_labels: Labels, scalars: Scalars) -> int:
    """How many volumes a call asks for: the length of its lists, or the batch size.

    Raises:
        ValueError: If a list is empty or the lengths disagree.
    """
    if scalars is not None and (not isinstance(scalars, Mapping) or not scalars):
        raise ValueError(f"scalars is {scalars!r}; give name -> number, or leave it out.")
    given: dict[str, Any] = {
        "class_labels": class_labels,
        **{f"scalars[{name!r}]": value for name, value in (scalars or {}).items()},
    }
    lengths = {name: len(value) for name, value in given.items() if _is_list(value)}
    count = next(iter(lengths.values()), batch_size) if batch_size == 1 else batch_size
    for name, length in lengths.items():
        if length != count or not length:
            raise ValueError(
                f"{name} has {length} entries for {count or 1} volumes; give one for all, or one a volume."
            )
    return count


def make_requests(
    count: int,
    class_labels: Labels,
    scalars: Scalars,
    *,
    classes: Mapping[str, VolumeClass],
    processor: VolumeProcessor,
    scalar_names: Sequence[str],
    null_condition: bool,
    optional_scalars: bool,
) -> list[VolumeRequest]:
    """One request a volume.

    Args:
        count: Number of volumes, see :func:`count_volumes`.
        class_labels: Name or label of a class, or one a volume.
        scalars: Name -> number, or one a volume.
        classes: Those of the model; empty if it is not class-conditional.
        processor: That of a volume without a class.
        scalar_names: Those of the model.
        null_condition: Whether the model was trained without class and scalars too.
        optional_scalars: Whether the model was trained with single scalars absent.

    Raises:
        ValueError: If a condition is unknown or of no use to the model or the class, or the model was not trained with such
            a combination.
    """
    if class_labels is not None and not classes:
        raise ValueError("class_labels were given, but this model has no classes; leave them out.")
    if scalars is not None and not scalar_names:
        raise ValueError("scalars were given, but this model has no scalar conditions; leave them out.")
    labels, given = _spread(class_labels, count), scalars or {}
    if set(given) - set(scalar_names):
        raise ValueError(f"scalars names {_listing(given)}; this model takes {_listing(scalar_names)}.")
    _check_combination(labels, given, classes, scalar_names, null_condition, optional_scalars)
    columns = {name: _spread(value, count) for name, value in given.items()}
    for name, values in columns.items():
        for value in values:
            if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"The scalar {name!r} is {value!r}; give a finite number.")
    requests = []
    for i, label in enumerate(labels):
        given_here = {name: float(values[i]) for name, values in columns.items()}
        if label is None:
            requests.append(VolumeRequest(processor=processor, scalars=given_here))
        else:
            entry = find_class(classes, label)
            _check_scalars_of(entry, given_here)
            requests.append(
                VolumeRequest(processor=entry.processor, name=entry.name, label=entry.id, scalars=given_here)
            )
    return requests


def check_guidance(requests: Sequence[VolumeRequest], guidance_scale: float, *, null_condition: bool) -> None:
    """Raise ValueError unless every volume has a condition to be guided by, and the model was trained without it too."""
    if not isinstance(guidance_scale, Real) or not 1 <= guidance_scale < math.inf:
        raise ValueError(f"guidance_scale is {guidance_scale!r}; give 1, which is no guidance, or a larger number.")
    if guidance_scale > 1 and not null_condition:
        raise ValueError(
            f"guidance_scale is {guidance_scale}, but this model was not trained without its conditions "
            "(--label_dropout); leave it out."
        )
    if guidance_scale > 1 and any(request.is_empty for request in requests):
        raise ValueError(
            f"guidance_scale is {guidance_scale}, but there is no condition to be guided by; give class_labels or "
            "scalars, or leave it out."
        )


def check_spacing(requests: Sequence[VolumeRequest], spacing: Sequence[float], output_type: str) -> None:
    """Raise ValueError if the volumes cannot be resampled to a voxel size in mm, or not into one tensor."""
    VolumeProcessor(spacing=spacing)
    if output_type == "latent":
        raise ValueError("spacing was given with output_type='latent', but latents are not resampled; leave it out.")
    own = {request.processor.spacing for request in requests}
    if output_type != "nifti" and len(own) > 1:
        raise ValueError(
            "The classes of this call have different spacings and, resampled to one, different grids; use "
            "output_type='nifti' or call once a spacing."
        )


def _check_combination(
    labels: Sequence[Any],
    given: Mapping[str, Any],
    classes: Mapping[str, VolumeClass],
    scalar_names: Sequence[str],
    null_condition: bool,
    optional_scalars: bool,
) -> None:
    """Raise ValueError unless conditions are absent only where they were in training."""
    if classes and None in labels and not null_condition:
        raise ValueError(f"This model is class-conditional: give class_labels, of {list_classes(classes)}.")
    if classes and None in labels and given:
        raise ValueError(
            "scalars were given without a class, which this model was not trained with; give class_labels, of "
            f"{list_classes(classes)}, or neither."
        )
    missing = sorted(set(scalar_names) - set(given))
    without_any = not given and all(label is None for label in labels)
    if missing and not optional_scalars and not (null_condition and without_any):
        raise ValueError(
            f"scalars lacks {', '.join(missing)}, but this model was not trained with single scalars absent; give all of "
            f"{_listing(scalar_names)}."
        )


def _check_scalars_of(entry: VolumeClass, given: Mapping[str, float]) -> None:
    """Raise ValueError if the class never had a scalar in training, warn of values that it did not have."""
    if entry.scalars is None:
        return
    unknown = set(given) - set(entry.scalars)
    if unknown:
        raise ValueError(
            f"The class {entry.name!r} was trained without the scalar {_listing(unknown)}; it takes "
            f"{_listing(entry.scalars)}: leave the others out."
        )
    for name, value in given.items():
        low, high = entry.scalars[name]
        if not low <= value <= high:
            logger.warning(
                f"The scalar {name!r} is {value:g}, outside of the {low:g} to {high:g} that {entry.name!r} was trained with."
            )


def _is_list(value: Any) -> bool:
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str)


def _spread(value: Any, count: int) -> list[Any]:
    """One entry a volume, of plain Python values."""
    plain = value.tolist() if isinstance(value, np.ndarray | np.generic | torch.Tensor) else value
    return list(plain) if _is_list(value) else [plain] * count


def _listing(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
