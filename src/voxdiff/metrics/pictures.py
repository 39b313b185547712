"""Pictures of a report: slices, nearest neighbours, the embedding of both sets, their intensities and spectra."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxdiff.metrics.features import FeatureSet
from voxdiff.volumes import atomic_path

REAL, SYNTHETIC = "#1f4e79", "#d1602a"
_MONTAGE_VOLUMES = 6
_NEIGHBOUR_PAIRS = 6
_PROFILE_VOLUMES = 100


def save_montage(
    path: Path,
    sets: dict[str, Sequence[torch.Tensor]],
    spacing_mm: Sequence[float] = (1, 1, 1),
    count: int = _MONTAGE_VOLUMES,
) -> None:
    """Middle axial, coronal and sagittal slices of evenly spaced volumes of each set, a row a volume, a block a set."""
    columns = [
        np.concatenate([_planes(volume, spacing_mm) for volume in _spread(volumes, count)]) for volumes in sets.values()
    ]
    height = max(len(column) for column in columns)
    columns = [np.pad(column, ((0, height - len(column)), (0, 0))) for column in columns]
    figure, axes = _figure(len(columns), (3.2 * len(columns), 1.05 * count + 0.4))
    for axis, column, name in zip(axes, columns, sets, strict=True):
        _show(axis, column, name)
    _save(figure, path)


def save_neighbours(
    path: Path,
    synthetic: Sequence[torch.Tensor],
    references: Sequence[torch.Tensor],
    pairs: Sequence[tuple[int, int, str]],
    reference_name: str,
    spacing_mm: Sequence[float] = (1, 1, 1),
) -> None:
    """Synthetic volumes beside their nearest reference, and the difference.

    Args:
        path: a `.png` file.
        synthetic: (1, x, y, z) each.
        references: the same.
        pairs: place of the synthetic volume, place of the reference, and what to write beside them.
        reference_name: of the references.
        spacing_mm: voxel size along x, y, z.
    """
    pairs = pairs[:_NEIGHBOUR_PAIRS]
    figure, axes = _figure(3, (9.6, 1.25 * len(pairs) + 0.4), rows=len(pairs))
    titles = ["synthetic", reference_name, "difference"]
    for row, (place, nearest, text) in zip(np.reshape(axes, (len(pairs), 3)), pairs, strict=True):
        found, reference = _planes(synthetic[place], spacing_mm), _planes(references[nearest], spacing_mm)
        for axis, image, name in zip(row, (found, reference, 0.5 + (found - reference)), titles, strict=True):
            _show(axis, image, name)
        titles = [""] * 3  # once, above the first row
        row[0].set_ylabel(text, fontsize=7)
    _save(figure, path)


def save_embedding(path: Path, real: FeatureSet, synthetic: FeatureSet, extractor: str) -> None:
    """Both sets on the two principal components of the real features."""
    mean = real.values.mean(0)
    _, _, components = np.linalg.svd(real.values - mean, full_matrices=False)
    figure, (axis,) = _figure(1, (5, 4.4))
    for features, colour, name in ((real, REAL, "real"), (synthetic, SYNTHETIC, "synthetic")):
        points = (features.values - mean) @ components[:2].T
        axis.scatter(points[:, 0], points[:, 1], s=10, alpha=0.6, color=colour, label=f"{name} ({len(points)})")
    axis.set_xlabel(f"first principal component of the real features ({extractor})", fontsize=8)
    axis.set_ylabel("second", fontsize=8)
    axis.legend(fontsize=8)
    _save(figure, path)


def save_profiles(
    path: Path, real: Sequence[torch.Tensor], synthetic: Sequence[torch.Tensor], intensity: tuple[float, float, str]
) -> None:
    """Histogram of the intensities and radial power spectrum of both sets: mean over volumes, and their 5-95 % band.

    Args:
        path: the picture.
        real: volumes (1, x, y, z) in [0, 1].
        synthetic: the same.
        intensity: what 0 and 1 stand for, and the unit.
    """
    low, high, unit = intensity
    figure, (left, right) = _figure(2, (9.6, 3.8))
    for volumes, colour, name in ((real, REAL, "real"), (synthetic, SYNTHETIC, "synthetic")):
        chosen = _spread(volumes, _PROFILE_VOLUMES)
        edges = np.linspace(0, 1, 65)
        histograms = np.stack([np.histogram(volume.numpy(), edges)[0] / volume.numel() for volume in chosen])
        _band(left, low + (high - low) * (edges[1:] + edges[:-1]) / 2, histograms, colour, name)
        spectra = [radial_power_spectrum(volume[0].numpy()) for volume in chosen]
        _band(right, spectra[0][0], np.stack([power for _, power in spectra]), colour, name)
    for axis, label in ((left, f"intensity ({unit})"), (right, "spatial frequency (cycles per voxel)")):
        axis.set_yscale("log")
        axis.set_xlabel(label, fontsize=8)
        axis.legend(fontsize=8)
    left.set_ylabel("share of voxels", fontsize=8)
    right.set_ylabel("power", fontsize=8)
    _save(figure, path)


def radial_power_spectrum(volume: np.ndarray, bins: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Mean power of the Fourier coefficients by frequency, 0 to 0.5 cycles per voxel, the mean value left out.

    Args:
        volume: (x, y, z).
        bins: of the frequency; those without a coefficient are left out.

    Returns:
        The frequencies (middle of each bin) and the power there.
    """
    power = np.abs(np.fft.rfftn(volume - volume.mean())) ** 2 / volume.size
    axes = [np.fft.fftfreq(length) for length in volume.shape[:2]] + [np.fft.rfftfreq(volume.shape[2])]
    frequency = np.sqrt(sum(axis.reshape([-1 if i == k else 1 for k in range(3)]) ** 2 for i, axis in enumerate(axes)))
    edges = np.linspace(0, 0.5, bins + 1)
    wave = frequency > 0
    counts, _ = np.histogram(frequency[wave], edges)
    sums, _ = np.histogram(frequency[wave], edges, weights=power[wave])
    held = counts > 0
    return ((edges[1:] + edges[:-1]) / 2)[held], sums[held] / counts[held]


def _planes(volume: torch.Tensor, spacing_mm: Sequence[float] = (1, 1, 1)) -> np.ndarray:
    """Middle axial, coronal and sagittal slices side by side, superior or anterior up, a pixel the finest voxel edge."""
    values, step = volume[0].numpy(), min(spacing_mm)
    for axis, edge in enumerate(spacing_mm):
        places = (np.arange(round(values.shape[axis] * edge / step)) + 0.5) * step / edge
        values = values.take(places.astype(int), axis)
    x, y, z = (length // 2 for length in values.shape)
    slices = [plane[:, ::-1].T for plane in (values[:, :, z], values[:, y], values[x])]
    height = max(len(plane) for plane in slices)
    return np.concatenate([np.pad(plane, ((0, height - len(plane)), (0, 0))) for plane in slices], axis=1)


def _spread(volumes: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    places = np.unique(np.linspace(0, len(volumes) - 1, min(count, len(volumes))).round().astype(int))
    return [volumes[int(place)] for place in places]


def _band(axis: Any, x: np.ndarray, curves: np.ndarray, colour: str, name: str) -> None:
    low, high = np.percentile(curves, [5, 95], axis=0)
    floor = curves[curves > 0].min(initial=1.0)
    axis.fill_between(x, np.maximum(low, floor), np.maximum(high, floor), color=colour, alpha=0.2, linewidth=0)
    axis.plot(x, np.maximum(curves.mean(0), floor), color=colour, label=name)


def _show(axis: Any, image: np.ndarray, title: str) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=1)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=8)


def _figure(columns: int, inches: tuple[float, float], rows: int = 1) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("The pictures of a report need matplotlib: pip install voxdiff[metrics].") from error
    figure = Figure(figsize=inches, layout="constrained")
    return figure, np.ravel(figure.subplots(rows, columns, squeeze=False))


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
