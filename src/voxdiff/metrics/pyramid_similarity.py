"""MS-SSIM of many pairs: what belongs to one volume alone is computed once, a pair costs one smoothing a scale.

The Gaussian window is applied as a product with one banded matrix an axis. A processor with wide vectors does that in
a tenth of the time of a convolution with one channel.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from voxdiff.metrics.structural import MS_SSIM_WEIGHTS

_CHUNK_VOXELS = {"cpu": 2**18, "cuda": 2**27}  # what is scored at once: 1 MiB stays in a core's cache


@dataclass(frozen=True, kw_only=True)
class MsSsimSettings:
    """The settings that an MS-SSIM value belongs to, with the defaults of :func:`voxdiff.metrics.similarity.ms_ssim`.

    Attributes:
        data_range: largest minus smallest possible value.
        scales: 1 to 5; each halves the grid.
        kernel_size: voxels a side of the Gaussian window.
        sigma: width of the window in voxels.

    Raises:
        ValueError: a setting is out of range.
    """

    data_range: float = 1.0
    scales: int = 4
    kernel_size: int = 5
    sigma: float = 1.0

    def __post_init__(self) -> None:
        allowed = (
            ("data_range", self.data_range > 0, "a positive number"),
            ("scales", self.scales in range(1, len(MS_SSIM_WEIGHTS) + 1), f"1 to {len(MS_SSIM_WEIGHTS)}"),
            ("kernel_size", self.kernel_size >= 1, "a whole number of at least 1"),
            ("sigma", self.sigma > 0, "a positive number"),
        )
        for name, valid, choice in allowed:
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)}; give {choice}.")

    @property
    def weights(self) -> tuple[float, ...]:
        """Exponents of the scales, finest first; they sum to 1."""
        used = MS_SSIM_WEIGHTS[: self.scales]
        return tuple(weight / sum(used) for weight in used)

    def check_grid(self, grid: tuple[int, ...]) -> None:
        """Raises ValueError if the window does not fit into the coarsest scale of this grid (x, y, z)."""
        smallest = self.kernel_size * 2 ** (self.scales - 1)
        if min(grid) < smallest:
            raise ValueError(
                f"A grid of {' x '.join(map(str, grid))} is too small for {self.scales} scales with a window of "
                f"{self.kernel_size} voxels; use fewer scales, or at least {smallest} voxels a side."
            )


class _Scale(NamedTuple):
    """One scale of the volumes: (number, x, y, z), and smaller by the window for the two statistics."""

    image: torch.Tensor
    mean: torch.Tensor
    half_variance: torch.Tensor  # (variance + c2 / 2) / 2, so that the sum of two is half of SSIM's denominator


class SimilarityPyramid:
    """Volumes with the statistics that MS-SSIM needs of each of them alone.

    About 3.4 times the memory of the volumes. Slicing gives a view of some of the volumes.

    Args:
        volumes: (number, 1, x, y, z).
        settings: what the similarities will belong to.
        skipped: the volumes were pooled this many times already (:func:`pooled`), and the finer scales are left out of
            the similarity.

    Raises:
        ValueError: the volumes have another rank or several channels, or the grid is too small for the scales.
    """

    def __init__(self, volumes: torch.Tensor, settings: MsSsimSettings, *, skipped: int = 0) -> None:
        if volumes.ndim != 5 or volumes.shape[1] != 1:
            raise ValueError(f"Volumes of shape {tuple(volumes.shape)} were given; allowed is (number, 1, x, y, z).")
        settings.check_grid(tuple(size * 2**skipped for size in volumes.shape[2:]))
        self.settings = settings
        self.skipped = skipped
        self.scales: list[_Scale] = []
        images = volumes[:, 0].float()
        for scale in range(skipped, settings.scales):
            images = images if scale == skipped else F.avg_pool3d(images[:, None], 2)[:, 0]
            self.scales.append(_with_statistics(images.contiguous(), settings))

    def __len__(self) -> int:
        return len(self.scales[0].image)

    def __getitem__(self, places: slice) -> "SimilarityPyramid":
        part = object.__new__(SimilarityPyramid)
        part.settings, part.skipped = self.settings, self.skipped
        part.scales = [_Scale(*(tensor[places] for tensor in scale)) for scale in self.scales]
        return part

    def similarities(self, others: "SimilarityPyramid") -> torch.Tensor:
        """MS-SSIM of the one volume of this pyramid with each of the others: (number of others,).

        With skipped scales it is the product over the scales that are left, good for a ranking only.

        Raises:
            ValueError: this pyramid holds several volumes, or the two were made with different settings.
        """
        if len(self) != 1 or (self.settings, self.skipped) != (others.settings, others.skipped):
            raise ValueError(
                f"{len(self)} volume(s) with {self.settings}, {self.skipped} scale(s) skipped, were compared with "
                f"{others.settings}, {others.skipped} skipped; give one volume and pyramids of the same settings."
            )
        product = torch.ones(len(others), device=others.scales[0].image.device)
        weights = self.settings.weights[self.skipped :]
        for place, weight in enumerate(weights):
            factor = _mean_structure(
                self.scales[place], others.scales[place], self.settings, luminance=place == len(weights) - 1
            )
            product *= factor.relu_().pow_(weight)
        return product


def pooled(volumes: torch.Tensor, times: int) -> torch.Tensor:
    """The volumes (number, 1, x, y, z) with each side halved so many times, as between the scales of MS-SSIM."""
    for _ in range(times):
        volumes = F.avg_pool3d(volumes, 2)
    return volumes


def similarity_matrix(volumes: SimilarityPyramid, others: SimilarityPyramid) -> torch.Tensor:
    """MS-SSIM of all pairs: (number, number of others)."""
    return torch.stack([volumes[place : place + 1].similarities(others) for place in range(len(volumes))])


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of matrices in plain float32, without gradients.

    With bfloat16 products, which :func:`torch.set_float32_matmul_precision` may allow, MS-SSIM of brains at 64³ was off
    by up to 0.0035: as much as the nearest and the second nearest of 400 differ (median 0.0034).
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _with_statistics(images: torch.Tensor, settings: MsSsimSettings) -> _Scale:
    parts = images.split(_chunk(images))
    mean = torch.cat([_smoothed(part, settings) for part in parts])
    variance = torch.cat([_smoothed(part * part, settings) for part in parts]).sub_(mean * mean)
    return _Scale(images, mean, variance.add_(_contrast_constant(settings) / 2).div_(2))


def _mean_structure(one: _Scale, others: _Scale, settings: MsSsimSettings, *, luminance: bool) -> torch.Tensor:
    """Mean over the voxels of the contrast-structure map, times the luminance map if asked: (number of others,)."""
    c1, c2 = (0.01 * settings.data_range) ** 2, _contrast_constant(settings)
    chunk = _chunk(others.image)
    means = []
    for first in range(0, len(others.image), chunk):
        image, mean, half_variance = (tensor[first : first + chunk] for tensor in others)
        structure = _smoothed(one.image * image, settings).addcmul_(one.mean, mean, value=-1).add_(c2 / 2)
        structure.div_(one.half_variance + half_variance)
        if luminance:
            structure *= (2 * one.mean * mean).add_(c1) / (one.mean**2 + mean**2 + c1)
        means.append(structure.flatten(1).mean(1))
    return torch.cat(means)


def _chunk(images: torch.Tensor) -> int:
    """How many volumes are worked on at once."""
    return max(1, _CHUNK_VOXELS.get(images.device.type, 2**18) // images[0].numel())


def _contrast_constant(settings: MsSsimSettings) -> float:
    return (0.03 * settings.data_range) ** 2


def _smoothed(images: torch.Tensor, settings: MsSsimSettings) -> torch.Tensor:
    """Gaussian window over (number, x, y, z), where it fits into the grid."""
    number, x, y, z = images.shape
    along_x, along_y, along_z = (
        _window_matrix(size, settings.kernel_size, settings.sigma, str(images.device)) for size in (x, y, z)
    )
    result = torch.mm(images.reshape(-1, z), along_z.T)
    result = torch.bmm(along_y.expand(number * x, -1, -1), result.view(number * x, y, -1))
    result = torch.bmm(along_x.expand(number, -1, -1), result.view(number, x, -1))
    return result.view(number, len(along_x), len(along_y), len(along_z))


@lru_cache(maxsize=64)
def _window_matrix(size: int, kernel_size: int, sigma: float, device: str) -> torch.Tensor:
    """(size - kernel_size + 1, size), one window a row."""
    offsets = torch.arange(kernel_size, dtype=torch.float64) - (kernel_size - 1) / 2
    window = torch.exp(-((offsets / sigma) ** 2) / 2)
    matrix = torch.zeros(size - kernel_size + 1, size, dtype=torch.float64)
    for row in range(len(matrix)):
        matrix[row, row : row + kernel_size] = window / window.sum()
    return matrix.float().to(device)
