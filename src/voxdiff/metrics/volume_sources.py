"""Volumes found in a folder or given as arrays, before their voxels are read: names, headers, and how to prepare them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from voxdiff.volumes import VolumeProcessor, intensity_unit, load_volume

_SUFFIXES = (".nii.gz", ".nii")
_UNIT_RANGE_TOLERANCE = 1e-3
LOWEST_PLAUSIBLE_MR = -200.0
CT_WINDOW_HU = (-1000.0, 1000.0)
MR_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Header:
    """What a file says about its volume without its voxels being read, along the axes nearest to x, y, z.

    Attributes:
        shape: voxels.
        spacing_mm: voxel size; empty for an array, which has none.
        unit: as voxdiff writes it, None in other files.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    unit: str | None

    def grid(self) -> str:
        """Grid and voxel size in words."""
        spacing = " x ".join(f"{edge:g}" for edge in self.spacing_mm)
        return f"{' x '.join(map(str, self.shape))} voxels" + (f" of {spacing} mm" if spacing else "")


@dataclass(frozen=True)
class Source:
    """A volume that was found or given, and not read yet."""

    name: str
    volume: Path | np.ndarray | torch.Tensor
    header: Header

    @property
    def key(self) -> str:
        """Tells the volume from every other one of its set."""
        return str(self.volume) if isinstance(self.volume, Path) else self.name


def found_sources(folder: Path, pattern: str) -> list[Source]:
    """The files below a folder that match the pattern, with their headers."""
    return [
        Source(file_stem(path.relative_to(folder)), path, read_header(path)) for path in find_volumes(folder, pattern)
    ]


def given_sources(volumes: Sequence[np.ndarray] | np.ndarray | torch.Tensor) -> list[Source]:
    """Arrays (x, y, z), numbered."""
    if len(volumes) == 0:
        raise ValueError("No volume was given; give at least one array (x, y, z).")
    return [
        Source(f"volume-{place:04d}", volume, Header(tuple(volume.shape), (), None))
        for place, volume in enumerate(volumes)
    ]


def find_volumes(folder: Path, pattern: str = "*") -> list[Path]:
    """NIfTI files below a folder that match a glob pattern, sorted by name.

    Raises:
        FileNotFoundError: the folder is missing, or holds none.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder {folder} does not exist; give a folder of .nii.gz volumes.")
    found = [
        path
        for path in sorted(folder.rglob(pattern))
        if path.name.endswith(_SUFFIXES) and not path.name.startswith(".") and path.is_file()
    ]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no NIfTI volume (.nii, .nii.gz) that matches {pattern!r}; give another folder or pattern."
        )
    return found


def read_header(path: Path) -> Header:
    """Grid, voxel size and unit of a file.

    Raises:
        ValueError: the file is no readable NIfTI volume.
    """
    try:
        image: Any = nib.load(path)
        zooms, shape = image.header.get_zooms(), image.shape
        order = nib.io_orientation(image.affine)[:, 0].argsort() if len(shape) >= 3 else range(len(shape))
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise ValueError(f"{path} cannot be read ({str(error).rstrip('.')}); remove it or copy it again.") from error
    sides = tuple(int(shape[axis]) for axis in order)
    return Header(sides, tuple(round(float(zooms[axis]), 3) for axis in order), intensity_unit(image))


def standard_processor(folder: Path, volumes: Sequence[Any], unit: str | None) -> VolumeProcessor:
    """How a set is prepared when nothing else is said: chosen from the real set once, then used for every other.

    HU: the window -1000 to 1000. Values already in [0, 1]: as they are. Anything else: from percentile 0.5 to 99.5 of
    each volume, to which a set's global intensity is invisible.

    Raises:
        ValueError: the values look like HU and no header or caller says so.
    """
    if unit == "label":
        raise ValueError(f"{folder} holds label maps; give the images, with --pattern where both lie in one folder.")
    if unit == "HU":
        low, high = CT_WINDOW_HU
        return VolumeProcessor(intensity="window", low=low, high=high, unit="HU", value_range=(0.0, 1.0))
    lowest, highest = value_range(volumes)
    if unit is None and lowest < LOWEST_PLAUSIBLE_MR:
        raise ValueError(
            f"The volumes in {folder} go down to {lowest:g} and no header names a unit; say --unit HU or --unit a.u.."
        )
    if lowest >= -_UNIT_RANGE_TOLERANCE and 0 < highest <= 1 + _UNIT_RANGE_TOLERANCE:
        return VolumeProcessor(intensity="window", low=0.0, high=1.0, unit="a.u.", value_range=(0.0, 1.0))
    low, high = MR_PERCENTILES
    return VolumeProcessor(intensity="percentile", low=low, high=high, value_range=(0.0, 1.0))


def value_range(volumes: Sequence[Any]) -> tuple[float, float]:
    """Lowest and highest value of all the files or arrays."""
    lowest, highest = np.inf, -np.inf
    for volume in volumes:
        values = np.asarray(load_volume(volume).dataobj if isinstance(volume, Path) else volume)
        lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
    return lowest, highest


def common_unit(folder: Path, headers: Sequence[Header], unit: str | None) -> str | None:
    """The unit of a folder: the one that its headers name, or the caller.

    Raises:
        ValueError: the headers name two, or another than the caller.
    """
    named = Counter(header.unit for header in headers if header.unit is not None)
    if len(named) > 1:
        raise ValueError(
            f"{folder} mixes volumes in {' and '.join(sorted(named))}; keep one unit a folder, or choose files with "
            "--pattern."
        )
    found = next(iter(named), None)
    if unit is not None and found is not None and unit != found:
        raise ValueError(f"{folder} holds volumes in {found} and --unit says {unit}; drop the option.")
    return unit or found


def require_one_grid(folder: Path, headers: Sequence[Header]) -> None:
    """Raise ValueError if grids or voxel sizes differ."""
    grids = Counter(header.grid() for header in headers)
    if len(grids) > 1:
        listed = ", ".join(f"{count} of {grid}" for grid, count in grids.most_common(3))
        raise ValueError(f"The volumes in {folder} have different grids ({listed}); bring them to one with --size.")


def file_stem(path: Path) -> str:
    """The path without .nii or .nii.gz."""
    return str(path).removesuffix(".gz").removesuffix(".nii")
