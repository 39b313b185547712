"""How well label maps agree: Dice, and the 95th percentile of the Hausdorff distance, by label or region of labels."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

BRATS_REGIONS: Mapping[str, tuple[int, ...]] = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
"""Whole tumour, tumour core, enhancing tumour in the labels of BraTS 2023 (1 necrotic core, 2 oedema, 3 enhancing)."""


def segmentation_metrics(
    prediction: np.ndarray,
    reference: np.ndarray,
    *,
    spacing_mm: Sequence[float],
    regions: Mapping[str, int | Collection[int]] = BRATS_REGIONS,
) -> dict[str, float]:
    """Dice and HD95 of every region: `dice_WT`, `hd95_WT`, and so on, as :func:`dice` and :func:`hd95` define them.

    Args:
        prediction: label map (x, y, z), whole numbers.
        reference: label map of the same shape.
        spacing_mm: voxel size along x, y, z.
        regions: the labels that make up each region, by its name.

    Raises:
        ValueError: the shapes differ or are not (x, y, z), a label is not a whole number, or the spacing is not three
            positive numbers.
        ModuleNotFoundError: scipy is not installed.
    """
    result = {}
    for name, labels in regions.items():
        result[f"dice_{name}"] = dice(prediction, reference, labels)
        result[f"hd95_{name}"] = hd95(prediction, reference, labels, spacing_mm=spacing_mm)
    return result


def dice(prediction: np.ndarray, reference: np.ndarray, labels: int | Collection[int]) -> float:
    """Overlap 2 |P ∩ R| / (|P| + |R|) of the voxels that hold one of `labels`: 1 if neither map has any.

    Raises:
        ValueError: the shapes differ or are not (x, y, z), or a label is not a whole number.
    """
    predicted, true = _region(prediction, reference, labels)
    voxels = int(predicted.sum()) + int(true.sum())
    return 2 * int((predicted & true).sum()) / voxels if voxels else 1.0


def hd95(
    prediction: np.ndarray,
    reference: np.ndarray,
    labels: int | Collection[int],
    *,
    spacing_mm: Sequence[float],
) -> float:
    """95th percentile of the surface distance in mm between the voxels that hold one of `labels`.

    The larger of the two directed 95th percentiles (linear between ranks), as MONAI has it: not the percentile of both
    directions pooled, and over all lesions at once. The surface is the voxels with a neighbour outside across a face,
    or at the border of the grid; distances run between voxel centres. Neither map has the labels: 0; only one has: the
    grid's diagonal, the root of the summed squares of its extents in mm (373 mm on the grid of BraTS).

    Args:
        prediction: label map (x, y, z), whole numbers.
        reference: label map of the same shape.
        labels: a label, or the labels that make up a region.
        spacing_mm: voxel size along x, y, z.

    Raises:
        ValueError: the shapes differ or are not (x, y, z), a label is not a whole number, or the spacing is not three
            positive numbers.
        ModuleNotFoundError: scipy is not installed.
    """
    spacing = np.asarray(spacing_mm, dtype=float)
    if spacing.shape != (3,) or not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise ValueError(f"spacing_mm is {spacing_mm}; give three positive numbers (x, y, z).")
    predicted, true = _region(prediction, reference, labels)
    if not predicted.any() and not true.any():
        return 0.0
    if not predicted.any() or not true.any():
        return math.hypot(*(spacing * predicted.shape))
    box = _bounding_box(predicted | true)
    surfaces = [_surface(region[box]) for region in (predicted, true)]
    directed = [
        np.percentile(_scipy_ndimage().distance_transform_edt(~other, sampling=spacing)[surface], 95)
        for surface, other in (surfaces, surfaces[::-1])
    ]
    return float(max(directed))


def _region(
    prediction: np.ndarray, reference: np.ndarray, labels: int | Collection[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Boolean maps of the voxels that hold one of the labels."""
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    if prediction.ndim != 3 or prediction.shape != reference.shape:
        raise ValueError(
            f"The label maps have the shapes {prediction.shape} and {reference.shape}; give two of the same shape "
            "(x, y, z)."
        )
    for values in (prediction, reference):
        if not (np.isfinite(values) & (values == np.round(values))).all():
            raise ValueError("A label map holds values that are not whole numbers; give labels, resampled as such.")
    wanted = [labels] if isinstance(labels, int | np.integer) else list(labels)
    return np.isin(prediction, wanted), np.isin(reference, wanted)


def _bounding_box(region: np.ndarray) -> tuple[slice, ...]:
    """Smallest box that holds every voxel of a region, which holds one."""
    occupied = np.argwhere(region)
    return tuple(slice(low, high + 1) for low, high in zip(occupied.min(0), occupied.max(0), strict=True))


def _surface(region: np.ndarray) -> np.ndarray:
    return region & ~_scipy_ndimage().binary_erosion(region)


def _scipy_ndimage() -> Any:
    try:
        from scipy import ndimage
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Surface distances need scipy: pip install voxdiff[metrics].") from error
    return ndimage
