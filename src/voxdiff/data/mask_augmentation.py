"""Mask augmentation of GEM-3D (arXiv 2403.12852).

The anatomy is mirrored and turned a little, and the tumour alone is scaled and moved towards the centre of the brain.
Each is one nearest-neighbour lookup on the mask's own grid, computed in mm, so that labels are never invented and
anisotropic voxels do not distort the anatomy. The published code mixes up the axes of the shift, halves it, and always
mirrors; here all is as the paper says.
"""

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
import torch

from voxdiff.data.brain_masks import BRAIN_LABEL, OUTSIDE_LABEL, TUMOUR_LABELS
from voxdiff.volume_grids import centred_affine, regrid

Labels = TypeVar("Labels", np.ndarray, torch.Tensor)

_PUBLISHED_SHIFT = 60 / 512
"""The paper's 60 pixels, of slices of 512 pixels that are cropped to the brain."""


def augment_mask(
    labels: Labels,
    *,
    generator: np.random.Generator,
    spacing: Sequence[float],
    kind: Literal["brain", "organs"] = "brain",
    tumour_labels: Sequence[int] = TUMOUR_LABELS,
    brain_label: int = BRAIN_LABEL,
    outside_label: int = OUTSIDE_LABEL,
    max_rotation: float = 2.5,
    flip_probability: float = 0.5,
    max_shift: float | None = None,
    scale_range: tuple[float, float] = (0.8, 1.2),
) -> Labels:
    """Change a mask at random; the result is a pure function of the mask and the generator's state.

    Brains are mirrored left-right and rotated; their tumour, if there is one, is scaled about its centroid and moved
    towards the centroid of the brain, never beyond it. Organs are only rotated.

    Args:
        labels: Whole numbers `(x, y, z)`, x running left-right.
        generator: All randomness; it is advanced by the same number of draws whatever the mask.
        spacing: Voxel size in mm along x, y, z.
        kind: ``"brain"`` or ``"organs"``.
        tumour_labels: Labels that move as one.
        brain_label: Label of brain without tumour, which also fills what the tumour leaves.
        outside_label: Label outside the anatomy.
        max_rotation: Largest angle about each axis, in degrees.
        flip_probability: How often a brain is mirrored; 1 in the published code.
        max_shift: Longest way of the tumour in mm; None is the paper's 60 of 512 pixels as a share of the brain's
            in-plane width (the longer of its extents along x and y).
        scale_range: Smallest and largest factor of the tumour's size along every axis.

    Returns:
        The changed labels, in the shape, type and container of those given.

    Raises:
        ValueError: If an option is impossible, the labels are not 3D whole numbers, or a mask with tumour has no brain
            that would say where the tumour may lie.
    """
    if kind not in ("brain", "organs"):
        raise ValueError(f"The kind of mask is {kind!r}; choose brain or organs.")
    _check_spacing(spacing)
    _check_ranges(max_rotation, flip_probability, max_shift, scale_range)
    angles = generator.uniform(-max_rotation, max_rotation, 3)
    mirrored, way = generator.uniform(size=2)
    scale = generator.uniform(*scale_range)
    if kind == "organs":
        return transform_mask(labels, spacing=spacing, rotation=angles.tolist(), outside_label=outside_label)
    values = _as_array(labels)
    is_tumour = np.isin(values, tumour_labels)
    shift = np.zeros(3)
    if is_tumour.any():
        _require_brain(values, brain_label)
        inside = values != outside_label
        to_centre = _centroid(inside, spacing) - _centroid(is_tumour, spacing)
        distance = float(np.linalg.norm(to_centre))
        longest = _published_shift(inside, spacing) if max_shift is None else max_shift
        shift = to_centre * way * min(1.0, longest / max(distance, 1e-6))
    return transform_mask(
        labels,
        spacing=spacing,
        rotation=angles.tolist(),
        flip=bool(mirrored < flip_probability),
        shift=shift.tolist(),
        scale=scale,
        tumour_labels=tumour_labels,
        brain_label=brain_label,
        outside_label=outside_label,
    )


def transform_mask(
    labels: Labels,
    *,
    spacing: Sequence[float],
    rotation: Sequence[float] = (0.0, 0.0, 0.0),
    flip: bool = False,
    shift: Sequence[float] = (0.0, 0.0, 0.0),
    scale: float = 1.0,
    tumour_labels: Sequence[int] = TUMOUR_LABELS,
    brain_label: int = BRAIN_LABEL,
    outside_label: int = OUTSIDE_LABEL,
) -> Labels:
    """Change a mask as asked: the tumour is scaled and moved, then the whole mirrored, then rotated.

    Args:
        labels: Whole numbers `(x, y, z)`, x running left-right.
        spacing: Voxel size in mm along x, y, z.
        rotation: Angles in degrees about the x, y and z axis through the centre of the grid, applied in this order.
        flip: Mirror left-right, about the centre of the grid.
        shift: Way of the tumour in mm along x, y, z of the given mask.
        scale: Factor of the tumour's size along every axis, about its centroid; on a voxel grid it changes nothing that
            it moves by less than half a voxel.
        tumour_labels: Labels that are scaled and moved as one; a mask without any is mirrored and rotated only.
        brain_label: Label that fills what the tumour leaves.
        outside_label: Label outside the anatomy, where no tumour may come to lie.

    Returns:
        The changed labels, in the shape, type and container of those given.

    Raises:
        ValueError: If the labels are not 3D whole numbers or cannot hold the outside label, the spacing or the scale is
            not positive, or a tumour is to be changed in a mask without brain.
    """
    values = _as_array(labels)
    _check_spacing(spacing)
    if not scale > 0:
        raise ValueError(f"The scale of the tumour is {scale:g}; give a factor above 0.")
    allowed = np.iinfo(values.dtype)
    if not allowed.min <= outside_label <= allowed.max:
        raise ValueError(
            f"The outside label is {outside_label}, which {values.dtype} masks cannot hold; convert the mask."
        )
    turn = _rotation_matrix(rotation)
    if flip:
        turn = turn @ np.diag([-1.0, 1.0, 1.0, 1.0])
    is_tumour = np.isin(values, tumour_labels)
    if not is_tumour.any() or (scale == 1 and not np.any(shift)):
        return _like(_look_up(values, turn, spacing, outside_label), labels)
    _require_brain(values, brain_label)
    move = np.diag([scale, scale, scale, 1.0])
    move[:3, 3] = _centroid(is_tumour, spacing) * (1 - scale) + np.asarray(shift, dtype=float)
    anatomy = _look_up(np.where(is_tumour, brain_label, values), turn, spacing, outside_label)
    tumour = _look_up(np.where(is_tumour, values, outside_label), turn @ move, spacing, outside_label)
    return _like(np.where((tumour != outside_label) & (anatomy != outside_label), tumour, anatomy), labels)


def _look_up(values: np.ndarray, change: np.ndarray, spacing: Sequence[float], fill: int) -> np.ndarray:
    """Labels after a change of space, 4 x 4 in mm about the centre of the grid."""
    to_mm = centred_affine(values.shape, "RAS", spacing)
    matrix = np.linalg.inv(change @ to_mm) @ to_mm
    volume = torch.from_numpy(values.astype(np.float32))[None]
    shape = (values.shape[0], values.shape[1], values.shape[2])
    return regrid(volume, matrix, shape, fill=fill, nearest=True)[0].numpy().astype(np.int64)


def _rotation_matrix(degrees: Sequence[float]) -> np.ndarray:
    """4 x 4 rotation about the x, then the y, then the z axis."""
    matrix = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        about = np.eye(4)
        about[first, first] = about[second, second] = np.cos(angle)
        about[second, first], about[first, second] = np.sin(angle), -np.sin(angle)
        matrix = about @ matrix
    return matrix


def _centroid(region: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Centroid in mm from the centre of the grid."""
    middle = (np.array(region.shape) - 1) / 2
    return (np.argwhere(region).mean(axis=0) - middle) * np.asarray(spacing, dtype=float)


def _require_brain(values: np.ndarray, brain_label: int) -> None:
    if not (values == brain_label).any():
        raise ValueError(
            f"The mask has tumour, but no voxel of the brain label {brain_label} to say where it may lie; add the brain "
            "to the mask (brain_mask_labels), or name its label."
        )


def _published_shift(brain: np.ndarray, spacing: Sequence[float]) -> float:
    in_plane = np.argwhere(brain.any(axis=2))
    extents = (np.ptp(in_plane, axis=0) + 1) * np.asarray(spacing, dtype=float)[:2]
    return _PUBLISHED_SHIFT * float(extents.max())


def _as_array(labels: np.ndarray | torch.Tensor) -> np.ndarray:
    values = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else labels
    if values.ndim != 3 or values.dtype.kind not in "iu":
        raise ValueError(f"The mask has shape {values.shape} and type {values.dtype}; give whole numbers (x, y, z).")
    return values


def _like(values: np.ndarray, labels: Labels) -> Labels:
    if isinstance(labels, torch.Tensor):
        return torch.from_numpy(values).to(labels.device, labels.dtype)
    return values.astype(labels.dtype)


def _check_spacing(spacing: Sequence[float]) -> None:
    if len(spacing) != 3 or not min(spacing) > 0:
        raise ValueError(f"The spacing is {tuple(spacing)}; give three voxel sizes in mm above 0.")


def _check_ranges(
    max_rotation: float, flip_probability: float, max_shift: float | None, scale_range: tuple[float, float]
) -> None:
    if not 0 <= max_rotation <= 180:
        raise ValueError(f"The largest rotation is {max_rotation}; give degrees from 0 to 180.")
    if not 0 <= flip_probability <= 1:
        raise ValueError(f"The probability of a flip is {flip_probability}; give a number from 0 to 1.")
    if max_shift is not None and not max_shift >= 0:
        raise ValueError(f"The longest shift is {max_shift}; give mm from 0.")
    if not 0 < scale_range[0] <= scale_range[1]:
        raise ValueError(
            f"The scales run from {scale_range[0]} to {scale_range[1]}; give two factors above 0, low first."
        )
