"""What one call of the slice-conditioned pipeline asks for: single slices, a volume with missing slices, or nothing known.

Slices are counted in the model's orientation, from low to high x, y or z.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from diffusers.utils import logging

from voxdiff.pipelines.slice_conditions import (
    GivenSlices,
    IntensityHints,
    SliceRequest,
    condition_on_nothing,
    condition_on_slices,
)
from voxdiff.pipelines.slice_grids import check_depth, find_factor, refine_grid, same_spacing, turn_volume, voxel_sizes
from voxdiff.pipelines.slice_stages import check_slices
from voxdiff.volume_files import check_values
from voxdiff.volume_intensities import check_numbers
from voxdiff.volumes import VolumeInput, VolumeProcessor, intensity_unit, load_volume

_LARGEST_TILT = 1.0  # degrees
_THICKER = 1.5  # times the spacing of other slices

logger = logging.get_logger(__name__)


def read_request(
    processor: VolumeProcessor,
    slice_axis: int,
    *,
    known_slices: Mapping[int, Any] | None = None,
    volume: VolumeInput | None = None,
    known_indices: Sequence[int] | None = None,
    corrupted: Sequence[int] | None = None,
    extend: Sequence[int] | None = None,
    factor: int | None = None,
    slice_spacing: float | None = None,
    size: Sequence[int] | None = None,
    first_position: float | None = None,
    intensity_range: Sequence[float] | None = None,
    unit: str | None = None,
    background: float | None = None,
) -> SliceRequest:
    """The request of a call; the arguments are those of the pipeline's.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the conditions contradict each other or do not fit the model.
    """
    check_slice_axis(slice_axis)
    if known_slices is not None and volume is not None:
        raise ValueError(
            "known_slices and a volume were given; write the slices into the volume and name known_indices."
        )
    of_volume: dict[str, Any] = {
        "known_indices": known_indices,
        "corrupted": corrupted,
        "extend": extend,
        "factor": factor,
        "slice_spacing": slice_spacing,
    }
    if background is not None:
        (background,) = check_numbers("background", background, 1, "one finite number")
    intensities = IntensityHints(limits=intensity_range, unit=unit, background=background)
    grid = None
    if volume is not None:
        if size is not None:
            raise ValueError(
                "size was given together with a volume, whose grid decides; use extend, or leave size out."
            )
        known, given, intensities = place_volume(volume, processor, slice_axis, intensities, **of_volume)
    else:
        _refuse_unread(of_volume, "a volume")
        grid = _find_size(size, processor)
        check_depth(grid[slice_axis])
        if known_slices is None:
            hints = {"intensity_range": intensity_range, "unit": unit, "background": background}
            _refuse_unread(hints, "a volume or known slices")
            return condition_on_nothing(processor, grid, slice_axis, first_position)
        known, given, intensities = place_slices(known_slices, processor, slice_axis, grid, intensities)
    return condition_on_slices(
        given,
        known,
        processor,
        slice_axis,
        hints=intensities,
        sides=grid,
        first_position=first_position,
    )


def check_slice_axis(slice_axis: int) -> None:
    """Raise ValueError unless it is 0, 1 or 2."""
    if not isinstance(slice_axis, Integral) or isinstance(slice_axis, bool) or slice_axis not in (0, 1, 2):
        raise ValueError(f"slice_axis is {slice_axis!r}; use 0, 1 or 2, the axis x, y or z along which the slices run.")


def place_volume(
    volume: VolumeInput,
    processor: VolumeProcessor,
    slice_axis: int,
    hints: IntensityHints,
    *,
    known_indices: Sequence[int] | None = None,
    corrupted: Sequence[int] | None = None,
    extend: Sequence[int] | None = None,
    factor: int | None = None,
    slice_spacing: float | None = None,
) -> tuple[tuple[int, ...], GivenSlices, IntensityHints]:
    """The usable slices of a volume on the grid of the result.

    Args:
        volume: Path, NIfTI image, array or tensor ``(x, y, z)``; the latter two have the model's orientation, and the
            result has the model's spacing.
        processor: That of the model.
        slice_axis: Along which axis of the model's orientation the slices run; an oblique volume's nearest axis counts.
        hints: About the intensities.
        known_indices: Slices of the volume that are used; None: all that are not `corrupted`.
        corrupted: Slices of the volume that are generated anew.
        extend: New slices (below, above) at the result's spacing.
        factor: Of the slice spacing: 4 puts three new slices between any two.
        slice_spacing: The same as the wanted spacing in mm.

    Returns:
        Places of the known slices in the result, the slices, and the hints with the unit that the file names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the volume is broken, or an argument does not fit it.
    """
    values, affine, orientation, space_code, unit = _open(volume, processor)
    source = str(volume) if isinstance(volume, str | Path) else type(volume).__name__
    name = f"The volume {source!r}" if isinstance(volume, str | Path) else "The volume"
    used = _usable_slices(known_indices, corrupted, values.shape[slice_axis])
    _check_finite(values, used, name, slice_axis)
    if isinstance(volume, np.ndarray | torch.Tensor) and slice_spacing is not None:
        raise ValueError(
            "slice_spacing was given, but an array has no spacing of its own; give factor, or a NIfTI image."
        )
    spacing = voxel_sizes(affine)
    factor = find_factor(spacing[slice_axis], factor, slice_spacing)
    if factor > 1 and max(spacing) > _THICKER * spacing[slice_axis]:
        logger.warning(
            "%s is refined along axis %d, where its slices are %.3g mm apart, and stays as it is along axis %d, where they "
            "are %.3g mm apart; to refine those, pass slice_axis to a model that was trained along it.",
            *(name, slice_axis, spacing[slice_axis], int(np.argmax(spacing)), max(spacing)),
        )
    below, above = _check_extension(extend)
    fine_affine, shape = refine_grid(affine, values.shape, slice_axis, factor=factor, extend=(below, above))
    if isinstance(volume, np.ndarray | torch.Tensor):
        fine_affine = processor.model_affine(shape)
    places = tuple(below + factor * number for number in used)
    given = GivenSlices(
        values=_scatter(np.take(values, used, slice_axis), places, shape, slice_axis),
        affine=fine_affine,
        orientation=orientation,
        space_code=space_code,
        source=source,
        name=name,
    )
    return places, given, replace(hints, unit=unit if hints.unit is None else hints.unit)


def place_slices(
    known_slices: Mapping[int, Any],
    processor: VolumeProcessor,
    slice_axis: int,
    size: tuple[int, int, int],
    hints: IntensityHints,
) -> tuple[tuple[int, ...], GivenSlices, IntensityHints]:
    """Single slices on a grid of the model, whose places are their indices: where an image lies is not read.

    Args:
        known_slices: Index -> 2D array or tensor over the grid's other two axes in their order, or a NIfTI image or its
            path with a single slice along this axis.
        processor: That of the model.
        slice_axis: Along which axis the slices run.
        size: The grid (x, y, z).
        hints: About the intensities.

    Returns:
        The indices, the slices, and the hints with the unit that the images name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no slice, an index or a slice does not fit the grid, or units differ.
    """
    if not isinstance(known_slices, Mapping) or not known_slices:
        kind = "an empty" if isinstance(known_slices, Mapping) else "a"
        raise ValueError(
            f"known_slices is {kind} {type(known_slices).__name__}; give a mapping of index -> slice with at least one "
            "entry."
        )
    known = check_slices("known_slices", list(known_slices), size[slice_axis])
    sides = size[:slice_axis] + size[slice_axis + 1 :]
    read = [_read_slice(known_slices[number], f"Known slice {number}", processor, slice_axis) for number in known]
    slices, units = zip(*read, strict=True)
    named = sorted({unit for unit in units if unit is not None})
    if len(named) > 1:
        raise ValueError(f"The known slices are in {' and '.join(named)}; give slices of one unit.")
    for number, values in zip(known, slices, strict=True):
        if values.shape != sides:
            raise ValueError(
                f"Known slice {number} has the shape {values.shape}, but across axis {slice_axis} this grid has slices of "
                f"{sides}; bring it to the model's grid."
            )
    given = GivenSlices(
        values=_scatter(np.stack(slices, axis=slice_axis), known, size, slice_axis),
        affine=processor.model_affine(size),
        orientation=processor.orientation,
        source="slices",
        name="The set of known slices",
    )
    return known, given, replace(hints, unit=named[0] if named and hints.unit is None else hints.unit)


def _open(volume: VolumeInput, processor: VolumeProcessor) -> tuple[np.ndarray, np.ndarray, str, int, str | None]:
    """Voxels, perhaps not finite, and affine in the model's orientation; axis code, space code and unit of the input."""
    if isinstance(volume, np.ndarray | torch.Tensor):
        values = _to_array(volume)
        check_values(values, "The volume", allow_nan=True)
        return values, processor.model_affine(values.shape), processor.orientation, 2, None
    if not isinstance(volume, str | Path | nib.spatialimages.SpatialImage):
        raise ValueError(f"The volume is a {type(volume).__name__}; give a path, an image, an array or a tensor.")
    image = load_volume(volume, allow_nan=True)
    values, affine = turn_volume(np.asarray(image.dataobj), image.affine, processor.orientation)
    orientation = "".join(nib.orientations.aff2axcodes(image.affine))
    space_code = int(image.header["sform_code"]) or int(image.header["qform_code"]) or 2
    return values, affine, orientation, space_code, intensity_unit(image)


def _read_slice(given: Any, name: str, processor: VolumeProcessor, slice_axis: int) -> tuple[np.ndarray, str | None]:
    """A slice and the unit that its image names."""
    if isinstance(given, str | Path | nib.spatialimages.SpatialImage):
        try:
            image = load_volume(given)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{name}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        values, affine = turn_volume(np.asarray(image.dataobj), image.affine, processor.orientation)
        if values.shape[slice_axis] != 1:
            raise ValueError(
                f"{name} is an image of the shape {values.shape} in the model's orientation; give one with a single slice "
                f"along axis {slice_axis}, or a 2D array."
            )
        tilt = float(np.degrees(nib.affines.obliquity(image.affine).max()))
        if tilt > _LARGEST_TILT:
            raise ValueError(
                f"{name} is tilted by {tilt:.1f} degrees to the model's grid; give a 2D array, or a volume, which keeps it."
            )
        _check_spacing(voxel_sizes(affine), name, processor, slice_axis)
        return values.squeeze(slice_axis), intensity_unit(image)
    if not isinstance(given, np.ndarray | torch.Tensor) or given.ndim != 2:
        shape = f" of shape {tuple(given.shape)}" if isinstance(given, np.ndarray | torch.Tensor) else ""
        raise ValueError(f"{name} is a {type(given).__name__}{shape}; give a 2D array or tensor, or an image.")
    values = _to_array(given)
    check_values(values[..., None], name)
    return values, None


def _check_spacing(spacing: Sequence[float], name: str, processor: VolumeProcessor, slice_axis: int) -> None:
    """Raise ValueError unless an image has the model's voxels in plane: slices are not resampled."""
    wanted = processor.spacing or spacing
    across = [axis for axis in range(3) if axis != slice_axis]
    if any(not same_spacing(spacing[axis], wanted[axis]) for axis in across):
        sizes, own = (" x ".join(f"{edges[axis]:g}" for axis in across) for edges in (spacing, wanted))
        raise ValueError(f"{name} has voxels of {sizes} mm in plane, but this model of {own} mm; resample it.")


def _usable_slices(known_indices: Sequence[int] | None, corrupted: Sequence[int] | None, count: int) -> tuple[int, ...]:
    if known_indices is not None and corrupted is not None:
        raise ValueError("known_indices and corrupted were given, each of which leaves the other slices; give one.")
    if known_indices is not None:
        used = check_slices("known_indices", known_indices, count)
    else:
        without = check_slices("corrupted", () if corrupted is None else corrupted, count)
        used = tuple(number for number in range(count) if number not in without)
    if not used:
        raise ValueError(f"None of the volume's {count} slices is left to start from; leave the volume out.")
    return used


def _check_finite(values: np.ndarray, used: Sequence[int], name: str, slice_axis: int) -> None:
    """Raise ValueError if a slice that is used is not finite, as those are that a user marks as missing."""
    broken = [str(number) for number in used if not np.isfinite(np.take(values, number, slice_axis)).all()]
    if broken:
        few = ", ".join(broken[:10]) + (" and more" if len(broken) > 10 else "")
        anew = "" if len(broken) == len(used) else ", or name such slices in corrupted, which makes them anew"
        where = f"in the slices {few} (in the model's orientation, from 0)"
        raise ValueError(f"{name} holds NaN or infinite voxels {where}; replace them with numbers{anew}.")


def _check_extension(extend: Sequence[int] | None) -> tuple[int, int]:
    numbers = (0, 0) if extend is None else tuple(extend) if _is_row(extend) else (extend,)
    if len(numbers) != 2 or any(not _is_count(number, least=0) for number in numbers):
        raise ValueError(f"extend is {extend!r}; give two whole numbers of at least 0, slices below and slices above.")
    return int(numbers[0]), int(numbers[1])


def _to_array(values: np.ndarray | torch.Tensor) -> np.ndarray:
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _scatter(slices: np.ndarray, places: Sequence[int], shape: tuple[int, int, int], slice_axis: int) -> np.ndarray:
    """Slices in their places of an empty float32 volume.

    Raises:
        ValueError: If float32 cannot hold a value.
    """
    values = np.zeros(shape, np.float32)
    if np.abs(slices).max() > np.finfo(np.float32).max:
        raise ValueError(f"The known slices reach {slices.max():g}, beyond float32; scale them first.")
    np.moveaxis(values, slice_axis, 0)[list(places)] = np.moveaxis(slices, slice_axis, 0)
    return values


def _find_size(size: Sequence[int] | None, processor: VolumeProcessor) -> tuple[int, int, int]:
    size = processor.size if size is None else size
    if size is None:
        raise ValueError("This model has no grid of its own and no volume gives one; pass size=(x, y, z).")
    if not _is_row(size) or len(size) != 3 or not all(map(_is_count, size)):
        raise ValueError(f"size is {size!r}; give three whole numbers (x, y, z) of at least 1.")
    return int(size[0]), int(size[1]), int(size[2])


def _is_row(values: Any) -> bool:
    return isinstance(values, Sequence) or (isinstance(values, np.ndarray) and values.ndim == 1)


def _is_count(number: Any, least: int = 1) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool) and int(number) >= least


def _refuse_unread(arguments: Mapping[str, Any], needed: str) -> None:
    given = ", ".join(name for name, value in arguments.items() if value is not None)
    if given:
        raise ValueError(f"{given} was given without {needed}; give that too, or leave it out.")
