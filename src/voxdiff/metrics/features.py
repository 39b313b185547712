"""Features of a whole set of volumes: in 3D, or of slices of each plane; computed once and kept."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from voxdiff.metrics.extractors.base import FeatureExtractor
from voxdiff.volumes import atomic_path

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
"""Plane -> axis of (x, y, z) along which its slices lie."""

BLOCK = 16
"""Volumes computed between two saves; a killed run loses at most these."""

_BATCH_VOXELS = 8 * 64**3  # a network sees at once; a batch of one takes PyTorch's slow convolution on one CPU thread


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set.

    Attributes:
        values: (rows, features), float64; a row is a volume or, in 2D, a slice.
        groups: (rows,), the volume each row belongs to.
        probabilities: (rows, classes), or None.
    """

    values: np.ndarray
    groups: np.ndarray
    probabilities: np.ndarray | None = None

    @property
    def num_volumes(self) -> int:
        """Number of volumes that have rows."""
        return len(np.unique(self.groups))

    def of_volumes(self, indices: Sequence[int] | np.ndarray) -> "FeatureSet":
        """The rows of these volumes, numbered anew in the order given."""
        rows = [np.flatnonzero(self.groups == index) for index in indices]
        groups = np.concatenate([np.full(len(found), place) for place, found in enumerate(rows)])
        chosen = np.concatenate(rows)
        return FeatureSet(
            self.values[chosen], groups, None if self.probabilities is None else self.probabilities[chosen]
        )


def extract_features(
    extractor: FeatureExtractor,
    volumes: Sequence[torch.Tensor],
    *,
    plane: str | None = None,
    slices_per_plane: int = 16,
    cache_dir: str | Path | None = None,
    on_volume: Callable[[], None] | None = None,
) -> FeatureSet:
    """Features of every volume.

    Args:
        extractor: a 3D one, or a 2D one with a plane.
        volumes: (1, x, y, z) in [0, 1] each.
        plane: "axial", "coronal" or "sagittal" for a 2D extractor.
        slices_per_plane: evenly spaced over the middle three quarters of the axis.
        cache_dir: where blocks of features are kept by what went into them, so that nothing is computed twice.
        on_volume: called after each volume.

    Raises:
        ValueError: the plane does not fit the extractor.
    """
    if (plane is None) != (extractor.spatial_dims == 3):
        raise ValueError(
            f"The extractor {extractor.name} is {extractor.spatial_dims}D and plane is {plane!r}; give a plane "
            f"({', '.join(PLANES)}) to a 2D extractor and none to a 3D one."
        )
    settings = [extractor.settings(), plane, slices_per_plane if plane else None]
    values, probabilities = [], []
    for first in range(0, len(volumes), BLOCK):
        block = [volumes[index] for index in range(first, min(first + BLOCK, len(volumes)))]
        found = _cached_block(extractor, block, plane, slices_per_plane, settings, cache_dir)
        values.append(found["values"].double().numpy())
        if "probabilities" in found:
            probabilities.append(found["probabilities"].double().numpy())
        if on_volume is not None:
            for _ in block:
                on_volume()
    stacked = np.concatenate(values)
    rows = len(stacked) // len(volumes)
    groups = np.repeat(np.arange(len(volumes)), rows)
    return FeatureSet(stacked, groups, np.concatenate(probabilities) if probabilities else None)


def slice_positions(length: int, count: int) -> list[int]:
    """Evenly spaced places over the middle three quarters of an axis."""
    low, high = length / 8, length * 7 / 8
    return sorted({int(place) for place in low + (np.arange(count) + 0.5) * (high - low) / count})


def take_slices(volume: torch.Tensor, plane: str, count: int) -> torch.Tensor:
    """Slices (count, 1, height, width) of a volume (1, x, y, z)."""
    axis = PLANES[plane]
    places = slice_positions(volume.shape[1 + axis], count)
    return volume[0].movedim(axis, 0)[places][:, None]


def _cached_block(
    extractor: FeatureExtractor,
    block: Sequence[torch.Tensor],
    plane: str | None,
    slices_per_plane: int,
    settings: list,
    cache_dir: str | Path | None,
) -> dict[str, torch.Tensor]:
    path = None
    if cache_dir is not None:
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for volume in block:
            key.update(volume.contiguous().numpy().tobytes())
        path = Path(cache_dir) / f"features-{key.hexdigest()[:24]}.safetensors"
        if path.is_file():
            try:
                return load_file(path)
            except SafetensorError as error:
                raise ValueError(f"The cached features {path} cannot be read ({error}); delete the file.") from error
    found = _compute_block(extractor, block, plane, slices_per_plane)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            save_file(found, temporary)
    return found


def _compute_block(
    extractor: FeatureExtractor, block: Sequence[torch.Tensor], plane: str | None, slices_per_plane: int
) -> dict[str, torch.Tensor]:
    """A few volumes at a time: what each gives depends on its neighbours by rounding only."""
    if plane is None:
        images = torch.stack(list(block))
    else:
        images = torch.cat([take_slices(volume, plane, slices_per_plane) for volume in block])
    seen = extractor.input_size or images.shape[2:]
    found = [extractor(batch) for batch in images.split(max(1, _BATCH_VOXELS // math.prod(seen)))]
    features = {"values": torch.cat([features.values for features in found]).contiguous()}
    probabilities = [features.probabilities for features in found if features.probabilities is not None]
    return {**features, "probabilities": torch.cat(probabilities).contiguous()} if probabilities else features
