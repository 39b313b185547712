"""Anatomy and image quality measured on the images themselves, so that any generator can be judged on known factors.

The brain measurements are made for T1-weighted volumes without a skull, on the axes right, anterior, superior (RAS).
They are instruments, not ground truth: on 100 simulated subjects at 64³ the ventricle volume correlates with the true
one at 0.95 and reads 5 ml too low, the brain volume at 0.999 and 50 ml too high (fluid on the surface counts).
Compare a set of volumes with another one measured in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# The ventricles in a frame where the brain's bounding box is 0 to 1 on each axis, and their depth below its surface.
_VENTRICLE_BOX = ((0.24, 0.76), (0.27, 0.77), (0.40, 0.69))
_VENTRICLE_DEPTH_MM = 12.0
_FLUID_THRESHOLD = 0.4  # cells with less fluid are noise and dark grey matter
_FOREGROUND = 0.15  # of the brightest tissue
_CLOSING_MM = 6.5  # bridges sulci that open to the outside


@dataclass(frozen=True)
class BrainFactors:
    """Measurements of one T1-weighted brain.

    Attributes:
        brain_volume_ml: volume of the brain, its ventricles and sulci included.
        ventricle_volume_ml: fluid of the lateral and third ventricles, partial volumes included.
        grey_mean: mean intensity of the voxels nearer to the grey matter's level.
        grey_spread: standard deviation of the same voxels.
        white_mean: mean intensity of the voxels nearer to the white matter's level.
        white_spread: standard deviation of the same voxels.
        sharpness: mean gradient magnitude inside the brain, per mm, relative to the white matter's intensity; a blur
            lowers it, noise raises it.
    """

    brain_volume_ml: float
    ventricle_volume_ml: float
    grey_mean: float
    grey_spread: float
    white_mean: float
    white_spread: float
    sharpness: float


@dataclass(frozen=True)
class LesionFactors:
    """Measurements of the lesions on one label map.

    Attributes:
        volume_ml: volume of all parts together.
        necrosis_ml: volume of the necrotic core.
        oedema_ml: volume of the oedema.
        enhancing_ml: volume of the enhancing tumour.
        components: number of separate lesions; voxels that touch at a corner belong together.
        radius_mm: radius of one ball as large as all parts together.
    """

    volume_ml: float
    necrosis_ml: float
    oedema_ml: float
    enhancing_ml: float
    components: int
    radius_mm: float


def brain_factors(volume: np.ndarray, spacing_mm: Sequence[float]) -> BrainFactors:
    """Measure a T1-weighted brain.

    Args:
        volume: (x, y, z) in RAS, background near 0, any positive scale; [0, 1] for comparable intensities.
        spacing_mm: voxel size along x, y, z.

    Raises:
        ValueError: the array is not 3-dimensional, or holds no foreground.
        ModuleNotFoundError: scipy is not installed.
    """
    volume = np.asarray(volume, dtype=np.float32)
    mask = brain_mask(volume, spacing_mm)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    grey, white = _tissue_levels(volume[mask])
    middle = (grey + white) / 2
    inside = volume[mask]
    grey_voxels = inside[(inside > 0.7 * grey) & (inside < middle)]
    white_voxels = inside[inside >= middle]
    return BrainFactors(
        brain_volume_ml=float(mask.sum()) * voxel_ml,
        ventricle_volume_ml=float(_ventricle_fluid(volume, mask, grey, spacing_mm).sum()) * voxel_ml,
        grey_mean=float(grey_voxels.mean()) if grey_voxels.size else float(grey),
        grey_spread=float(grey_voxels.std()) if grey_voxels.size else 0.0,
        white_mean=float(white_voxels.mean()),
        white_spread=float(white_voxels.std()),
        sharpness=_mean_gradient(volume, mask, spacing_mm) / white,
    )


def brain_mask(volume: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """The largest bright object with its sulci closed and its holes filled: boolean (x, y, z).

    Raises:
        ValueError: the array is not 3-dimensional, or holds no foreground.
        ModuleNotFoundError: scipy is not installed.
    """
    ndimage = _scipy_ndimage()
    if volume.ndim != 3 or not np.isfinite(volume).all() or not (volume > 0).any():
        raise ValueError(
            f"An array of shape {volume.shape} without finite positive foreground cannot be measured; give one volume "
            "(x, y, z) with a dark background."
        )
    foreground = volume > _FOREGROUND * np.percentile(volume, 99.5)
    labels, _ = ndimage.label(foreground)
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    steps = max(1, round(_CLOSING_MM / min(spacing_mm)))
    closed = ndimage.binary_closing(np.pad(largest, 2 * steps), iterations=steps)
    inner = (slice(2 * steps, -2 * steps),) * 3
    return ndimage.binary_fill_holes(closed[inner])


def ct_tissue_fractions(volume_hu: np.ndarray) -> dict[str, float]:
    """Shares of the voxels of a CT volume in HU that are air, lung, fat, soft tissue and bone; they sum to 1."""
    edges = [-np.inf, -900.0, -200.0, -20.0, 200.0, np.inf]
    counts, _ = np.histogram(volume_hu, edges)
    names = ("air", "lung_or_gas", "fat", "soft_tissue", "bone")
    return {name: float(count) / volume_hu.size for name, count in zip(names, counts, strict=True)}


def lesion_factors(labels: np.ndarray, spacing_mm: Sequence[float]) -> LesionFactors:
    """Measure a lesion on its label map (drawn, predicted or generated); images are not segmented here.

    Args:
        labels: (x, y, z), 0 background and the BraTS 2023 labels 1 necrotic core, 2 oedema, 3 enhancing tumour.
        spacing_mm: voxel size along x, y, z.

    Returns:
        All zero for a map without a lesion.

    Raises:
        ValueError: the array is not 3-dimensional, or holds other labels.
        ModuleNotFoundError: scipy is not installed.
    """
    labels = np.asarray(labels)
    found = np.unique(labels)
    if labels.ndim != 3 or not np.isin(found, (0, 1, 2, 3)).all():
        raise ValueError(
            f"A map of shape {labels.shape} with labels {found[:8].tolist()} is no lesion map (x, y, z) with 0 to 3 as "
            "in BraTS 2023; convert it first (before 2023 the enhancing tumour was 4)."
        )
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    necrosis_ml, oedema_ml, enhancing_ml = (float((labels == label).sum()) * voxel_ml for label in (1, 2, 3))
    volume_ml = necrosis_ml + oedema_ml + enhancing_ml
    _, components = _scipy_ndimage().label(labels > 0, structure=np.ones((3, 3, 3)))
    return LesionFactors(
        volume_ml=volume_ml,
        necrosis_ml=necrosis_ml,
        oedema_ml=oedema_ml,
        enhancing_ml=enhancing_ml,
        components=int(components),
        radius_mm=float(np.cbrt(0.75 / np.pi * volume_ml * 1000)),
    )


def _tissue_levels(inside: np.ndarray) -> tuple[float, float]:
    """Intensities of grey and white matter: percentiles, which stay put where the two peaks of a histogram merge."""
    grey, white = np.percentile(inside, [35, 80])
    return float(grey), float(white)


def _ventricle_fluid(volume: np.ndarray, mask: np.ndarray, grey: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """Share of each voxel that is fluid of the ventricles, linear between the darkest deep voxels and grey matter."""
    depth = _scipy_ndimage().distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    region = _ventricle_region(mask) & (depth > _VENTRICLE_DEPTH_MM)
    if not region.any():
        return np.zeros_like(volume)
    fluid = np.percentile(volume[region], 1)
    share = np.clip((grey - volume) / max(grey - fluid, 0.05 * grey), 0, 1) * region
    return np.where(share > _FLUID_THRESHOLD, share, 0)


def _ventricle_region(mask: np.ndarray) -> np.ndarray:
    """Where ventricles lie in a brain: an X seen from above, without the cistern behind and the fissure between."""
    x, y, z = _box_coordinates(mask)
    aside = np.abs(x - 0.5)
    region = np.ones_like(mask)
    for position, (low, high) in zip((x, y, z), _VENTRICLE_BOX, strict=True):
        region &= (position > low) & (position < high)
    region &= (aside < np.maximum(0.14, 0.14 + 0.8 * (0.5 - y))) & (aside > 1.1 * (0.43 - y))
    cistern = (aside < 0.10) & (y < 0.49) & (z < 0.55)
    fissure = (aside < 0.035) & (y > 0.55) & (z > 0.60)
    return region & ~cistern & ~fissure


def _box_coordinates(mask: np.ndarray) -> list[np.ndarray]:
    """Voxel positions along x, y, z relative to the mask's bounding box, shaped to broadcast."""
    coordinates = []
    for axis in range(3):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        position = (np.arange(mask.shape[axis]) - occupied[0]) / max(occupied[-1] - occupied[0], 1)
        coordinates.append(position.reshape([-1 if other == axis else 1 for other in range(3)]))
    return coordinates


def _mean_gradient(volume: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Mean gradient magnitude per mm, two voxels away from the brain's own outline."""
    inside = _scipy_ndimage().binary_erosion(mask, iterations=2)
    if not inside.any():
        return 0.0
    gradients = np.gradient(volume, *spacing_mm)
    return float(np.sqrt(sum(gradient**2 for gradient in gradients))[inside].mean())


def _scipy_ndimage() -> Any:
    try:
        from scipy import ndimage
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Measuring brains needs scipy: pip install voxdiff[metrics].") from error
    return ndimage
