"""What one call of the informed-slice pipeline asks for: masks, informed slices and the start, brought to the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from voxdiff.models.slice_positions import slice_position
from voxdiff.pipelines.informed_slice_checks import check_inside
from voxdiff.pipelines.mask_values import MaskEncoder
from voxdiff.volume_files import check_values
from voxdiff.volumes import VolumeGeometry, VolumeInput, VolumeProcessor, intensity_unit, load_volume

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True, kw_only=True)
class MaskRequest:
    """A mask on the model's grid.

    Attributes:
        places: Place of each voxel's label in the table, int64 ``(x, y, z)``.
        geometry: The mask's own grid, to which the volume goes back.
        source: Path, or kind, of what it was given as.
    """

    places: torch.Tensor
    geometry: VolumeGeometry
    source: str

    @property
    def sides(self) -> tuple[int, int]:
        """Number of voxels along x and y."""
        return self.places.shape[0], self.places.shape[1]

    @property
    def depth(self) -> int:
        """Number of slices."""
        return self.places.shape[2]

    def padded_sides(self, divisor: int) -> tuple[int, int]:
        """The sides, each rounded up to a multiple of `divisor`."""
        x, y = (-(-side // divisor) * divisor for side in self.sides)
        return x, y


@dataclass(frozen=True, kw_only=True)
class InformedSlice:
    """A given informed slice.

    Attributes:
        values: ``(1, 1, x, y)`` in the value range, on the in-plane grid of the mask.
        source: Path, or kind, of what it was given as.
        index: Axial slice that was taken of a volume, on the model's grid; None if a slice was given.
    """

    values: torch.Tensor
    source: str
    index: int | None = None

    def describe(self) -> dict[str, Any]:
        """Plain values for the record of a volume."""
        return {"informed_slice": self.source, "informed_slice_index": self.index}


def read_masks(masks: Any, processor: VolumeProcessor, encoder: MaskEncoder) -> list[MaskRequest]:
    """The masks of a call, one or a list, by nearest neighbour on the grid of the processor.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a mask is no volume, has an unknown label or nothing but background, or the masks' grids differ.
    """
    given = list(masks) if isinstance(masks, list | tuple) else [masks]
    if not given:
        raise ValueError("mask is an empty list; give at least one mask.")
    requests = [_read_mask(mask, processor, encoder) for mask in given]
    grids = sorted({tuple(request.places.shape) for request in requests})
    if len(grids) > 1:
        raise ValueError(f"The masks of this call lie on the grids {grids}; call once a grid.")
    return requests


def read_informed_slices(
    given: Any,
    masks: Sequence[MaskRequest],
    processor: VolumeProcessor,
    *,
    start: int,
    rule: str,
    unit: str | None = None,
    background: float | None = None,
) -> list[InformedSlice] | None:
    """One informed slice a mask, of one for all or of a list; None if none is given.

    Args:
        given: A 2D array or tensor in the mask's own x and y; a path, image or array of a volume, of which the slice at
            the same relative position is taken (or its only one); or ``(volume, index)``, the index counted on the
            model's grid.
        masks: Those of the call.
        processor: That of the images.
        start: The start slice.
        rule: Rule of the relative position, see :func:`voxdiff.models.slice_positions.slice_position`.
        unit: Unit of the slices, where the caller knows it.
        background: Value outside the field of view of the slices, in their unit.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a slice is unreadable, does not fit its mask, or lies outside its volume.
    """
    if given is None:
        return None
    slices = given if isinstance(given, list) else [given] * len(masks)
    if len(slices) != len(masks):
        raise ValueError(f"{len(slices)} informed slices were given for {len(masks)} masks; give one, or one a mask.")
    values: dict[str, Any] = {"unit": unit, "background": background}
    read = [
        _read_informed_slice(one, mask, processor, start, rule, values) for one, mask in zip(slices, masks, strict=True)
    ]
    for one, mask in zip(read, masks, strict=True):
        if tuple(one.values.shape[2:]) != mask.sides:
            raise ValueError(
                f"The informed slice is {tuple(one.values.shape[2:])} voxels on the model's grid, the mask's slices are "
                f"{mask.sides}; give both on one in-plane grid."
            )
    return read


def describe_conditions(
    masks: Sequence[MaskRequest], given: Sequence[InformedSlice] | None, *, otherwise: str | None, **shared: Any
) -> list[dict[str, Any]]:
    """What the volume of each mask was conditioned on, as plain values for its record.

    Args:
        masks: Those of the call.
        given: Informed slices that were read, one a mask.
        otherwise: What the informed slices are, if none was read: ``"generated"``, ``"latents"``, or None for a model
            without, which reads neither the start nor how windows go on from each other.
        shared: Further conditions of all volumes.
    """
    if given is None and otherwise is None:
        shared |= dict.fromkeys(("start", "propagation", "known_slice_noise"))
    unread = {"informed_slice": otherwise, "informed_slice_index": None}
    slices = [one.describe() for one in given] if given else [unread] * len(masks)
    return [{"mask": mask.source, **one, **shared} for mask, one in zip(masks, slices, strict=True)]


def find_start(start_position: float | int | None, depth: int, rule: str) -> int:
    """The start slice: a relative position in [0, 1], the index of a slice, or None for the centre.

    Raises:
        ValueError: If it lies outside the volume.
    """
    if start_position is None:
        return depth // 2
    if isinstance(start_position, int | np.integer) and not isinstance(start_position, bool):
        if 0 <= start_position < depth:
            return int(start_position)
    elif isinstance(start_position, float | np.floating) and 0 <= start_position <= 1:
        return slice_at(float(start_position), depth, rule)
    raise ValueError(
        f"start_position is {start_position!r}; give a number from 0.0 to 1.0, or a slice, here a whole number from 0 to "
        f"{depth - 1}."
    )


def slice_at(position: float, depth: int, rule: str) -> int:
    """The slice at a relative position in [0, 1]."""
    if rule == "official":
        return min(int(position * depth + 1e-9), depth - 1)  # 29 / 100 * 100 is below 29
    return int(position * (depth - 1) + 0.5)


def pad_in_plane(volume: torch.Tensor, sizes: Sequence[int], value: float) -> torch.Tensor:
    """Pad x and y of ``(..., x, y, z)`` on both sides, an odd voxel at the end."""
    (x, y), (wide, high) = volume.shape[-3:-1], sizes
    left, below = (wide - x) // 2, (high - y) // 2
    return F.pad(volume, (0, 0, below, high - y - below, left, wide - x - left), value=value)


def crop_in_plane(volume: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Undo :func:`pad_in_plane`."""
    left, below = ((padded - size) // 2 for padded, size in zip(volume.shape[-3:-1], sizes, strict=True))
    return volume[..., left : left + sizes[0], below : below + sizes[1], :]


def _read_mask(mask: VolumeInput, processor: VolumeProcessor, encoder: MaskEncoder) -> MaskRequest:
    if not isinstance(mask, VolumeInput):
        raise ValueError(
            f"mask is a {type(mask).__name__}; give a path, a NIfTI image, an array or a tensor of labels."
        )
    name = f"The mask {str(mask)!r}" if isinstance(mask, str | Path) else "The mask"
    on_grid = VolumeProcessor(
        orientation=processor.orientation,
        spacing=processor.spacing,
        size=processor.size,
        padding=processor.padding,
        intensity="labels",
        high=len(encoder.labels) - 1,
        value_range=(0, len(encoder.labels) - 1),
    )
    if isinstance(mask, np.ndarray | torch.Tensor):
        values = np.asarray(mask.detach().cpu() if isinstance(mask, torch.Tensor) else mask)
        check_values(values, name)
        own: VolumeInput = _places(values, encoder, name)
    else:
        image = load_volume(mask)
        places = _places(np.asarray(image.dataobj), encoder, name)
        own = nib.Nifti1Image(places, image.affine, image.header, dtype=np.uint8)
    tensor, geometry = on_grid.preprocess(own)
    check_inside(np.asarray(own.dataobj if isinstance(own, nib.Nifti1Image) else own), geometry, name)
    geometry = replace(geometry, background=_output_background(processor))
    return MaskRequest(places=tensor[0, 0].round().long(), geometry=geometry, source=_source(mask))


def _places(values: np.ndarray, encoder: MaskEncoder, name: str) -> np.ndarray:
    places = encoder.index(values, name).numpy().astype(np.uint8)
    if not places.any():
        raise ValueError(
            f"{name} is empty, all of it has the label {encoder.background}; give a mask in which something is drawn."
        )
    return places


def _read_informed_slice(
    given: Any, mask: MaskRequest, processor: VolumeProcessor, start: int, rule: str, values: dict[str, Any]
) -> InformedSlice:
    volume, index = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(volume, VolumeInput) or not isinstance(index, int | np.integer | None):
        raise ValueError(
            f"informed_slice is {_kinds(given)}; give a 2D slice, a volume (path, image, array or tensor), (volume, index), "
            "or a list with one of these a mask."
        )
    if isinstance(volume, str | Path) and Path(volume).suffix.lower() in _PICTURES:
        raise ValueError(
            f"The informed slice {str(volume)!r} is a picture, which does not say where left is; give a NIfTI file, or an "
            "array on the mask's x and y (where these point right and anterior, numpy.asarray(picture)[::-1, ::-1].T of a "
            "grey picture in radiological convention)."
        )
    if isinstance(volume, np.ndarray | torch.Tensor):
        if volume.ndim == 2 and index is None:
            return InformedSlice(values=_read_plane(volume, mask, processor, values), source=_source(volume))
    else:
        volume = load_volume(volume)
        values = {**values, "unit": values["unit"] or intensity_unit(volume)}
        if volume.shape[_axial_axis(volume.affine, mask)] == 1 and not index:
            return InformedSlice(values=_read_thin(volume, mask, processor, values), source=_source(given))
    tensor, _ = processor.preprocess(volume, **values)
    depth = tensor.shape[-1]
    if index is None:
        index = slice_at(slice_position(start, mask.depth, rule), depth, rule)
    elif not 0 <= index < depth:
        raise ValueError(f"The informed slice is slice {index} of a volume with the slices 0 to {depth - 1}.")
    return InformedSlice(values=tensor[..., int(index)], source=_source(given), index=int(index))


def _read_plane(
    plane: np.ndarray | torch.Tensor, mask: MaskRequest, processor: VolumeProcessor, values: dict[str, Any]
) -> torch.Tensor:
    """A slice ``(x, y)`` of the mask's own grid as the network sees it."""
    array = np.asarray(plane.detach().cpu() if isinstance(plane, torch.Tensor) else plane)
    if array.shape != mask.geometry.shape[:2]:
        raise ValueError(
            f"The informed slice has the shape {array.shape}, the slices of its mask {mask.geometry.shape[:2]}; give a "
            "slice on the mask's x and y, or a volume."
        )
    check_values(array[..., None], "The informed slice")
    if _axial_axis(np.array(mask.geometry.affine), mask) != 2:
        raise ValueError(
            "The informed slice is 2D, but the mask's last axis is not the axial one of the model; give a volume instead."
        )
    image = nib.Nifti1Image(array[..., None].astype(np.float32), np.array(mask.geometry.affine))
    return _read_thin(image, mask, processor, values)


def _read_thin(
    image: nib.Nifti1Image, mask: MaskRequest, processor: VolumeProcessor, values: dict[str, Any]
) -> torch.Tensor:
    """A volume of a single slice, as thick as the model's: resampled as it is, it would be thinned out with background."""
    across, affine = _across_slices(mask), image.affine.copy()
    axis = _axial_axis(affine, mask)
    thickness = np.linalg.norm(affine[:3, axis])
    if abs(affine[:3, axis] @ across) < (1 - 1e-6) * thickness * np.linalg.norm(across):
        raise ValueError("The informed slice is oblique to the model's axial slices; give a volume instead.")
    affine[:3, axis] *= np.linalg.norm(across) / thickness
    size = None if processor.size is None else (*processor.size[:2], 1)
    thick = nib.Nifti1Image(image.dataobj, affine, image.header)
    return replace(processor, size=size).preprocess(thick, **values)[0][..., 0]


def _axial_axis(affine: np.ndarray, mask: MaskRequest) -> int:
    """The axis of a grid that runs across the axial slices of the mask's model grid."""
    axes = affine[:3, :3]
    return int(abs(_across_slices(mask) @ (axes / np.linalg.norm(axes, axis=0))).argmax())


def _across_slices(mask: MaskRequest) -> np.ndarray:
    """The step from one axial slice of the mask's model grid to the next, in mm."""
    return np.array(mask.geometry.model_affine)[:3, 2]


def _source(given: Any) -> str:
    """Path, or kind, of what was given."""
    volume = given[0] if isinstance(given, tuple) else given
    return str(volume) if isinstance(volume, str | Path) else type(volume).__name__


def _kinds(given: Any) -> str:
    if not isinstance(given, tuple):
        return f"a {type(given).__name__}"
    return f"a tuple of {', '.join(type(part).__name__ for part in given)}"


def _output_background(processor: VolumeProcessor) -> float:
    """Value outside the mask's model grid, in the output unit."""
    low, high = processor.output_range
    background = processor.background
    return (
        background if background is not None and processor.intensity == "window" and low <= background <= high else low
    )
