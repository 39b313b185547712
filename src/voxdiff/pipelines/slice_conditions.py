"""Known slices in the middle of what is to be generated: as the network sees them, and as they came in.

Slices are counted in the model's orientation, from low to high x, y or z.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np
import torch
from diffusers.utils import logging

from voxdiff.pipelines.slice_grids import find_positions, straighten, turn_volume, voxel_sizes
from voxdiff.volume_files import make_image
from voxdiff.volume_grids import grid_map, regrid
from voxdiff.volume_intensities import check_numbers
from voxdiff.volumes import OutputType, VolumeGeometry, VolumeProcessor

logger = logging.get_logger(__name__)

_BEYOND, _DIM = 0.25, 0.1  # of the model's range: farther outside is refused, less at most is warned of


@dataclass(frozen=True, kw_only=True)
class IntensityHints:
    """What the caller says about the intensities of the known slices; None is not said.

    Attributes:
        limits: Values, in their own unit, that become the two ends of the value range, instead of those that the model's
            rule finds in the known slices.
        unit: Their unit.
        background: Their value outside the patient.
    """

    limits: Sequence[float] | None = None
    unit: str | None = None
    background: float | None = None


@dataclass(frozen=True, kw_only=True)
class GivenSlices:
    """The known slices as they came in.

    Attributes:
        values: ``(x, y, z)`` in the model's orientation on the result's own grid; zero where nothing is known.
        affine: Of that grid, which may be oblique.
        orientation: Axis code of the input, to which the result is turned back.
        space_code: NIfTI code of the space the affine leads to.
        source: Path or kind of the input.
        name: What to call it in an error.
    """

    values: np.ndarray
    affine: np.ndarray
    orientation: str
    space_code: int = 2
    source: str
    name: str


@dataclass(frozen=True, kw_only=True)
class SliceRequest:
    """What to generate around which slices.

    Attributes:
        known: Known slices of the result, ascending.
        clean: The result as the network sees it, ``(1, 1, x, y, slices)`` in the value range, the slice axis last;
            background where nothing is known.
        positions: ``(slices,)``: where they lie among the slices of the model.
        slice_axis: Axis of the volume, x, y or z, along which the slices run.
        processor: Turns the value range into the result's unit: the known slices' own, where some were given.
        geometry: From the result's own grid to the model's; None if nothing was given.
        given: The known slices as they came in.
    """

    known: tuple[int, ...]
    clean: torch.Tensor
    positions: torch.Tensor
    slice_axis: int
    processor: VolumeProcessor
    geometry: VolumeGeometry | None = None
    given: GivenSlices | None = None

    @property
    def depth(self) -> int:
        """Number of slices of the result."""
        return self.clean.shape[-1]

    @property
    def sides(self) -> tuple[int, int]:
        """Voxels along the other two axes."""
        return self.clean.shape[2], self.clean.shape[3]

    @property
    def outside(self) -> float:
        """The background in the value range."""
        return _background_level(self.processor)

    @property
    def _planes(self) -> tuple[Any, ...]:
        """Index of the known slices in an array ``(..., x, y, z)``."""
        return (..., list(self.known), *(slice(None),) * (2 - self.slice_axis))

    def describe(self) -> dict[str, Any]:
        """Plain values for the record of a volume."""
        return {
            "source": None if self.given is None else self.given.source,
            "known_slices": list(self.known),
            "slice_axis": int(self.slice_axis),
            "first_position": float(self.positions[0]),
            "intensity_range": None if self.given is None else list(self.processor.output_range),
        }

    def finish(self, volumes: torch.Tensor, output_type: OutputType) -> Any:
        """Volumes ``(batch, channels, x, y, slices)`` in the value range to what the user gets.

        The known slices are the given ones bit for bit in images; in a tensor or an array too, unless the model's grid
        is another one in plane.
        """
        volumes = volumes.movedim(-1, 2 + self.slice_axis)
        if output_type == "latent":
            return volumes
        geometries = None if self.geometry is None else [self.geometry] * len(volumes)
        low, high = self.processor.value_range
        finished = self.processor.postprocess(
            volumes.clamp(low, high).cpu(), output_type=output_type, geometries=geometries
        )
        if self.given is None:
            return finished
        if output_type == "nifti":
            return [self._restore(np.array(image.dataobj), self.given) for image in finished]
        shown = self._on_model_grid(self.given)[self._planes]
        finished[self._planes] = torch.from_numpy(shown).to(finished.dtype) if output_type == "pt" else shown
        return finished

    def _restore(self, values: np.ndarray, given: GivenSlices) -> nib.Nifti1Image:
        """The image on the input's own axes, with its own slices."""
        values[self._planes] = given.values[self._planes]
        turned, affine = turn_volume(values, given.affine, given.orientation, current=self.processor.orientation)
        return make_image(np.ascontiguousarray(turned), affine, unit=self.processor.unit, space_code=given.space_code)

    def _on_model_grid(self, given: GivenSlices) -> np.ndarray:
        """The given slices on the model's grid ``(1, x, y, z)``, copied where it has the same voxels."""
        geometry = self.geometry
        assert geometry is not None
        to_model = grid_map(geometry.affine, geometry.model_affine)
        values = torch.from_numpy(given.values)[None]
        nearest = self.processor.intensity == "labels"
        return regrid(values, to_model, geometry.model_shape, fill=geometry.background, nearest=nearest).numpy()


def condition_on_nothing(
    processor: VolumeProcessor, size: tuple[int, int, int], slice_axis: int, first_position: float | None = None
) -> SliceRequest:
    """A volume of the model's kind on a grid (x, y, z)."""
    sides = [side for axis, side in enumerate(size) if axis != slice_axis]
    spacing = voxel_sizes(processor.model_affine(size))[slice_axis]
    return SliceRequest(
        known=(),
        clean=torch.full((1, 1, *sides, size[slice_axis]), _background_level(processor)),
        positions=find_positions(size[slice_axis], spacing, processor, slice_axis, first_position),
        slice_axis=slice_axis,
        processor=processor,
    )


def condition_on_slices(
    given: GivenSlices,
    known: tuple[int, ...],
    processor: VolumeProcessor,
    slice_axis: int,
    *,
    hints: IntensityHints,
    sides: Sequence[int] | None = None,
    first_position: float | None = None,
) -> SliceRequest:
    """A volume around known slices.

    In plane they are brought to the model's grid; across it they stay where they are, whatever the spacing.

    Args:
        given: The known slices in their places.
        known: These places.
        processor: That of the model.
        slice_axis: Along which axis the slices run.
        hints: About their intensities.
        sides: Grid (x, y, z) that has the sides of a slice which the network shall see; None is the model's.
        first_position: See :func:`voxdiff.pipelines.slice_grids.find_positions`.

    Raises:
        ValueError: If the slices have no contrast, or are not in the model's unit.
    """
    shape, edges = given.values.shape, voxel_sizes(given.affine)
    own = _own_scale(np.take(given.values, known, slice_axis), processor, given.name, hints)
    if own.spacing is not None:
        own = replace(own, spacing=[*own.spacing[:slice_axis], edges[slice_axis], *own.spacing[slice_axis + 1 :]])
    sides = own.size if sides is None else sides
    if sides is not None:
        own = replace(own, size=[*sides[:slice_axis], shape[slice_axis], *sides[slice_axis + 1 :]])
    straight = nib.Nifti1Image(given.values, straighten(given.affine, shape, processor.orientation))
    tensor, geometry = own.preprocess(straight, unit=own.unit)
    unknown = sorted(set(range(shape[slice_axis])) - set(known))
    clean = tensor.movedim(2 + slice_axis, -1).clone()
    clean[..., unknown] = _background_level(own)
    return SliceRequest(
        known=known,
        clean=clean,
        positions=find_positions(shape[slice_axis], edges[slice_axis], processor, slice_axis, first_position),
        slice_axis=slice_axis,
        processor=own,
        geometry=geometry,
        given=given,
    )


def _own_scale(values: np.ndarray, processor: VolumeProcessor, name: str, hints: IntensityHints) -> VolumeProcessor:
    """The processor under which these slices, and what is generated around them, keep their own unit."""
    processor.check_unit(values, name, hints.unit, hints.background)
    if processor.intensity in ("window", "labels") and (hints.limits is None or processor.unit != "a.u."):
        if hints.limits is not None:
            raise ValueError(
                f"intensity_range was given, but this model works in {processor.unit!r}, which fixes it; leave it out."
            )
        _check_scale(values, processor, name)
        if hints.background is None:
            return processor
        low, high = processor.output_range
        _check_background(hints.background, low, high, name)
        return replace(processor, background=max(hints.background, low))
    background = processor.background if hints.background is None else hints.background
    if hints.limits is None:
        low, high = processor.limits(values, name, background)
    else:
        low, high = check_numbers("intensity_range", hints.limits, 2, "two numbers, the lower first")
    own = replace(
        processor,
        intensity="window",
        low=low,
        high=high,
        inside="volume",
        clip_below=None,
        unit="a.u." if hints.unit is None else hints.unit,
        background=None if background is None else min(max(background, low), high),
    )
    if hints.background is not None:
        _check_background(hints.background, low, high, name)
    if hints.limits is not None:
        _check_range(values, low, high, name)
    return own


def _check_scale(values: np.ndarray, processor: VolumeProcessor, name: str) -> None:
    """Raise ValueError if values in arbitrary units are on another scale than the model's; warn if they may be."""
    low, high = processor.output_range
    if processor.unit != "a.u.":
        return
    found = (
        f"{name} has values from {values.min():g} to {values.max():g}, but this model works from {low:g} to {high:g}"
    )
    if max(values.max() - high, low - values.min()) > _BEYOND * (high - low):
        raise ValueError(f"{found}; pass intensity_range, the values that shall become these two.")
    if low < values.max() < low + _DIM * (high - low):
        logger.warning("%s; if they are on another scale, pass intensity_range.", found)


def _check_range(values: np.ndarray, low: float, high: float, name: str) -> None:
    """Raise ValueError if the network would see next to nothing of the slices."""
    if not ((values >= low) & (values <= high)).any() or (values > high).mean() > 0.5:
        raise ValueError(
            f"intensity_range is {low:g} to {high:g}, but {name[0].lower()}{name[1:]} has values from {values.min():g} to "
            f"{values.max():g}, all outside or more than half above it; give the values for the ends of the model's range."
        )


def _check_background(background: float, low: float, high: float, name: str) -> None:
    """Raise ValueError if the value outside the patient lies above what the network sees; air may lie below, as in CT."""
    if background > high:
        raise ValueError(
            f"background is {background:g}, but of {name[0].lower()}{name[1:]} the network sees {low:g} to {high:g}; give "
            "the value outside the patient, at most the upper one."
        )


def _background_level(processor: VolumeProcessor) -> float:
    """The background in the value range; under a rule that scales each volume by itself, the lower end."""
    if processor.background is None or processor.intensity in ("percentile", "minmax"):
        return processor.value_range[0]
    low, high = processor.output_range
    return float(processor.encode(np.array(processor.background), low, high))
