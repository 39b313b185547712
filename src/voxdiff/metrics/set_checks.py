"""What makes two sets of volumes comparable: one grid, one scale, no volume on both sides. Refused before heavy work."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from voxdiff.metrics.volume_sets import VolumeSet
from voxdiff.metrics.volume_sources import LOWEST_PLAUSIBLE_MR, value_range
from voxdiff.volumes import VolumeProcessor

_SCALE_TOLERANCE = 0.1
_LEAST_HU_SPAN = 100.0  # between air or fat and bone of any scan
_CLIPPED_DIFFERENCE = 0.15
_END = 0.01  # share of the window that counts as its end: a generator's background is not exactly 0
_CLIPPED_VOLUMES = 16  # looked at in each set


def require_same_grid(volumes: VolumeSet, real: VolumeSet) -> None:
    """Compare the headers of two sets.

    Raises:
        ValueError: grids or voxel sizes differ, and nothing brings them together.
    """
    found, wanted = volumes.sources[0].header, real.sources[0].header
    rules = real.processor
    same_shape = rules.size is not None or found.shape == wanted.shape
    known = bool(found.spacing_mm and wanted.spacing_mm) and rules.spacing is None
    if not same_shape or (known and not np.allclose(found.spacing_mm, wanted.spacing_mm, rtol=0.01)):
        grids = [found.grid(), wanted.grid()]
        raise ValueError(
            f"The volumes in {volumes.folder} have {grids[0]} and those in {real.folder} {grids[1]}; correct the header "
            "that is wrong, or bring them to one grid with --size (and --spacing)."
        )


def require_same_prepared_grid(volumes: VolumeSet, real: VolumeSet) -> None:
    """Compare the grids of two prepared sets: resampling an oblique volume or to another voxel size may change one.

    Raises:
        ValueError: they differ.
    """
    found, wanted = tuple(volumes[0].shape[1:]), tuple(real[0].shape[1:])
    if found != wanted:
        grids = [" x ".join(map(str, grid)) for grid in (found, wanted)]
        raise ValueError(
            f"Once brought to one orientation and voxel size, the volumes in {volumes.folder} have {grids[0]} voxels and "
            f"those in {real.folder} {grids[1]}; give one grid with --size."
        )


def require_same_scale(sources: Sequence[VolumeSet], real: VolumeSet) -> None:
    """Compare the values of prepared sets with those of the real one, which chose the window.

    A window cuts off what lies beyond it: sets on another scale would be measured as saturated.

    Raises:
        ValueError: a set lies on another scale.
    """
    real_range = value_range([source.volume for source in real.sources])
    ranges = {str(volumes.folder): value_range([source.volume for source in volumes.sources]) for volumes in sources}
    require_same_range(real.processor, (str(real.folder), real_range), ranges)


def require_same_range(
    rules: VolumeProcessor, real: tuple[str, tuple[float, float]], others: dict[str, tuple[float, float]]
) -> None:
    """The same for the names and value ranges (lowest, highest) of sets.

    Raises:
        ValueError: a set lies on another scale.
    """
    if rules.intensity != "window":
        return
    name, real_range = real
    if rules.unit == "HU":
        for folder, (lowest, highest) in {name: real_range, **others}.items():
            if highest - lowest < _LEAST_HU_SPAN:
                raise ValueError(
                    f"The volumes in {folder} are to be measured in HU and go from {lowest:g} to {highest:g} only; name "
                    "the right unit, or rescale them to HU."
                )
    low, high = float(rules.low or 0), float(rules.high or 1)
    for folder, (lowest, highest) in others.items():
        if rules.unit == "HU" and real_range[0] < LOWEST_PLAUSIBLE_MR <= lowest:
            raise ValueError(
                f"The volumes in {folder} begin at {lowest:g} and the real ones at {real_range[0]:g} HU; give both sets "
                "in HU."
            )
        if rules.unit != "HU" and (lowest < low - _SCALE_TOLERANCE or highest > high + _SCALE_TOLERANCE):
            raise ValueError(
                f"The volumes in {folder} go from {lowest:g} to {highest:g} and the real ones from {low:g} to {high:g}; "
                "bring both sets to one scale."
            )


def clipping_warnings(volumes: VolumeSet, real: VolumeSet) -> list[str]:
    """One sentence where a window cuts off much more of one set than of the other, as a wrong offset makes it do."""
    if real.processor.intensity != "window":
        return []
    shares = [_share_at_the_ends(found) for found in (volumes, real)]
    if abs(shares[0] - shares[1]) <= _CLIPPED_DIFFERENCE:
        return []
    low, high, unit = real.processor.low, real.processor.high, real.processor.unit
    return [
        f"{100 * shares[0]:.0f} % of the voxels in {Path(volumes.folder).name} and {100 * shares[1]:.0f} % of those in "
        f"{Path(real.folder).name} lie at the ends of the window {low:g} to {high:g} {unit}: one of the sets may have "
        "another offset or background."
    ]


def require_disjoint(volumes: VolumeSet, train: VolumeSet) -> None:
    """Held-out volumes calibrate privacy: none may have been trained on.

    Raises:
        ValueError: a prepared volume of one set is, voxel by voxel, one of the other.
    """
    known = {train.digest(place): train.names[place] for place in range(len(train))}
    shared = [place for place in range(len(volumes)) if volumes.digest(place) in known]
    if shared:
        raise ValueError(
            f"{len(shared)} of the {len(volumes)} held-out volumes in {volumes.folder} are in the training set "
            f"{train.folder}, too ({volumes.names[shared[0]]} is {known[volumes.digest(shared[0])]}); give real volumes "
            "that the generator has not seen."
        )


def _share_at_the_ends(volumes: VolumeSet) -> float:
    places = np.unique(np.linspace(0, len(volumes) - 1, _CLIPPED_VOLUMES).round().astype(int))
    values = [volumes[int(place)] for place in places]
    return float(np.mean([((value <= _END) | (value >= 1 - _END)).float().mean().item() for value in values]))
