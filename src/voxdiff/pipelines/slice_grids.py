"""Grids whose slices some are known: finer spacing between known slices, further slices below and above them."""

from collections.abc import Sequence
from numbers import Integral

import nibabel as nib
import numpy as np
import torch

from voxdiff.volume_grids import centred_affine
from voxdiff.volume_intensities import check_numbers
from voxdiff.volumes import VolumeProcessor

_MOST_SLICES = 4096
# Spacings that differ by no more than this part are one: headers round.
_SAME_SPACING = 0.01


def turn_volume(
    values: np.ndarray, affine: np.ndarray, orientation: str, *, current: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reorder and flip the axes to those nearest to an axis code; an oblique volume stays oblique.

    Args:
        values: Voxels.
        affine: Where they lie.
        orientation: The wanted axis code.
        current: Axis code of the axes as they are; None is the one nearest to the affine, of which a volume that lies
            at 45 degrees between two has no better one.

    Returns:
        The voxels and the affine that places them where they were.
    """
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine) if current is None else nib.orientations.axcodes2ornt(current),
        nib.orientations.axcodes2ornt(orientation),
    )
    turned = nib.orientations.apply_orientation(values, turn)
    return turned, affine @ nib.orientations.inv_ornt_aff(turn, values.shape)


def voxel_sizes(affine: np.ndarray) -> tuple[float, float, float]:
    """Edges of a voxel in mm along the grid's own axes."""
    x, y, z = (float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0))
    return x, y, z


def straighten(affine: np.ndarray, shape: Sequence[int], orientation: str) -> np.ndarray:
    """Affine of the same grid with its axes along those of an axis code, so that no slice is cut by resampling."""
    return centred_affine(shape, orientation, voxel_sizes(affine))


def same_spacing(first: float, second: float) -> bool:
    """Whether two spacings, or ratios of them, are one up to the rounding of headers."""
    return abs(first - second) <= _SAME_SPACING * second


def refine_grid(
    affine: np.ndarray, shape: Sequence[int], slice_axis: int, *, factor: int = 1, extend: Sequence[int] = (0, 0)
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The grid with `factor` - 1 slices between any two, and further ones at the new spacing below and above.

    Slice i of the given grid is slice ``extend[0] + factor * i`` of the new one, at the same place in the world.

    Args:
        affine: Of the given grid.
        shape: Its size (x, y, z).
        slice_axis: Along which axis.
        factor: By which slices get closer.
        extend: New slices (below, above).

    Returns:
        Affine and shape of the new grid.

    Raises:
        ValueError: If it would have more than 4096 slices.
    """
    refined, sizes = np.array(affine, dtype=float), [int(size) for size in shape]
    refined[:3, slice_axis] /= factor
    refined[:3, 3] -= extend[0] * refined[:3, slice_axis]
    sizes[slice_axis] = (sizes[slice_axis] - 1) * factor + 1 + extend[0] + extend[1]
    check_depth(sizes[slice_axis])
    return refined, (sizes[0], sizes[1], sizes[2])


def check_depth(depth: int) -> None:
    """Raise ValueError if that is more slices than a volume has."""
    if depth > _MOST_SLICES:
        raise ValueError(
            f"The result would have {depth} slices; give a size, a spacing, a factor or an extension that leads to at most "
            f"{_MOST_SLICES}."
        )


def find_factor(spacing: float, factor: int | None, slice_spacing: float | None) -> int:
    """By how much slices `spacing` mm apart are refined: `factor`, or what leads to `slice_spacing` mm.

    Raises:
        ValueError: If both are given, or one is impossible.
    """
    if factor is not None and slice_spacing is not None:
        raise ValueError(f"factor={factor!r} and slice_spacing={slice_spacing!r} were given; give one of them.")
    if slice_spacing is not None:
        (slice_spacing,) = check_numbers("slice_spacing", slice_spacing, 1, "one number of mm")
        ratio = spacing / slice_spacing if slice_spacing > 0 else 0.0
        if ratio > _MOST_SLICES:
            raise ValueError(f"slice_spacing is {slice_spacing:g} mm, but the volume's {spacing:g} mm; give it in mm.")
        factor = round(ratio)
        if factor < 1 or not same_spacing(ratio, factor):
            below = max(int(ratio), 1)
            raise ValueError(
                f"slice_spacing is {slice_spacing:g} mm, which does not divide the volume's {spacing:g} mm; the known "
                f"slices stay in place with {spacing / (below + 1):g} or {spacing / below:g} mm."
            )
    factor = 1 if factor is None else factor
    if not isinstance(factor, Integral) or isinstance(factor, bool) or factor < 1:
        raise ValueError(f"factor is {factor!r}; give a whole number of at least 1.")
    return int(factor)


def find_positions(
    depth: int, spacing: float, processor: VolumeProcessor, slice_axis: int, first_position: float | None = None
) -> torch.Tensor:
    """Where the slices of a result lie among the slices that the network was trained on.

    Args:
        depth: Slices of the result.
        spacing: Between them, in mm.
        processor: Spacing and size of the model; without a spacing the network counts any slices.
        slice_axis: Along which axis.
        first_position: Of the first slice; None puts the result in the middle of the model's grid.

    Returns:
        ``(slices,)`` in slices of the model, float32.

    Raises:
        ValueError: If `first_position` is no finite number, or the result then lies outside the model's grid.
    """
    step = 1.0 if processor.spacing is None else spacing / processor.spacing[slice_axis]
    own = _MOST_SLICES if processor.size is None else processor.size[slice_axis]
    if first_position is not None:
        (first_position,) = check_numbers("first_position", first_position, 1, "one finite number of slices")
        last_position = first_position + (depth - 1) * step
        if last_position < 0 or first_position > own - 1:
            raise ValueError(
                f"first_position is {first_position:g}: the result then lies from {first_position:g} to {last_position:g}, "
                f"outside the model's slices 0 to {own - 1}; count in slices of the model."
            )
    else:
        middle = ((depth if processor.size is None else own) - 1) / 2
        first_position = middle - (depth - 1) / 2 * step
    positions = torch.arange(depth, dtype=torch.float64) * step + first_position
    return positions.float()
