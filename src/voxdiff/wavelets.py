"""One level of the orthonormal 3D Haar transform, on tensors ``(batch, channels, x, y, z)``.

The eight corners of every 2x2x2 cell are gathered into one axis and multiplied by a Hadamard matrix: one copy and one
small matrix product, any even size, any floating dtype, differentiable, without state. Band order and signs equal
``pywt.dwtn(..., "haar", axes=(2, 3, 4))`` with the keys sorted: aaa, aad, ada, add, daa, dad, dda, ddd.
"""

import math
from dataclasses import dataclass

import torch

BAND_NAMES = ("LLL", "LLH", "LHL", "LHH", "HLL", "HLH", "HHL", "HHH")
"""Bands in channel order. Letters follow the axes (x, y, z): LLH is high-pass along z only."""

NUM_BANDS = len(BAND_NAMES)


def haar_analysis(volumes: torch.Tensor) -> torch.Tensor:
    """Split volumes into their eight wavelet bands.

    Args:
        volumes: ``(batch, channels, x, y, z)`` with even x, y, z.

    Returns:
        Coefficients ``(batch, channels * 8, x/2, y/2, z/2)``; channel ``8 * c + i`` is band ``BAND_NAMES[i]`` of volume c.

    Raises:
        ValueError: If the tensor is not 5-dimensional or a grid size is odd.

    Example:
        >>> bands = haar_analysis(torch.ones(1, 1, 4, 4, 4))
        >>> bands.shape, round(bands[0, 0, 0, 0, 0].item(), 4)
        (torch.Size([1, 8, 2, 2, 2]), 2.8284)
    """
    if volumes.ndim != 5 or any(size % 2 or size == 0 for size in volumes.shape[2:]):
        raise ValueError(
            f"Haar analysis got a tensor of shape {tuple(volumes.shape)}; it takes (batch, channels, x, y, z) with even "
            "x, y and z: pad the volume to even sizes."
        )
    batch, channels, x, y, z = volumes.shape
    cells = volumes.reshape(batch, channels, x // 2, 2, y // 2, 2, z // 2, 2)
    corners = cells.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch * channels, NUM_BANDS, -1)
    bands = torch.matmul(_hadamard(volumes), corners)
    return bands.view(batch, channels * NUM_BANDS, x // 2, y // 2, z // 2)


def haar_synthesis(bands: torch.Tensor) -> torch.Tensor:
    """Rebuild volumes from their wavelet bands; the exact inverse and adjoint of :func:`haar_analysis`.

    Args:
        bands: ``(batch, channels * 8, x, y, z)`` as :func:`haar_analysis` returns them.

    Returns:
        Volumes ``(batch, channels, 2x, 2y, 2z)``.

    Raises:
        ValueError: If the tensor is not 5-dimensional or its channels are not a multiple of 8.
    """
    if bands.ndim != 5 or bands.shape[1] % NUM_BANDS:
        raise ValueError(
            f"Haar synthesis got a tensor of shape {tuple(bands.shape)}; it takes (batch, channels * 8, x, y, z) with the "
            "eight bands of each volume side by side."
        )
    batch, channels, x, y, z = bands.shape
    channels //= NUM_BANDS
    corners = torch.matmul(_hadamard(bands), bands.reshape(batch * channels, NUM_BANDS, -1))
    cells = corners.view(batch, channels, 2, 2, 2, x, y, z).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return cells.reshape(batch, channels, 2 * x, 2 * y, 2 * z)


def _hadamard(like: torch.Tensor) -> torch.Tensor:
    """Symmetric orthonormal 8x8 matrix; entry (i, j) is the sign of corner j = 4dx + 2dy + dz in band i."""
    index = torch.arange(NUM_BANDS, device=like.device)
    common = index[:, None] & index
    parity = (common ^ (common >> 1) ^ (common >> 2)) & 1
    return (1 - 2 * parity).to(like.dtype) / (2 * math.sqrt(2))


@dataclass(frozen=True)
class WaveletTransform:
    """Volumes to what a diffusion network works on, and back: Haar bands of comparable spread, or the voxels themselves.

    Args:
        wavelet: ``"haar"``, or None to leave the volumes as they are (voxel-space diffusion).
        band_scales: Divisor of each band, in the order of :data:`BAND_NAMES`. The published models divide LLL by 3 and
            leave the seven detail bands alone (Friedrich 2024).
    """

    wavelet: str | None = "haar"
    band_scales: tuple[float, ...] = (3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.wavelet not in ("haar", None):
            raise ValueError(f"wavelet is {self.wavelet!r}; allowed are 'haar' and None (voxel space).")
        if len(self.band_scales) != NUM_BANDS or any(not scale > 0 for scale in self.band_scales):
            raise ValueError(
                f"band_scales is {list(self.band_scales)}; give {NUM_BANDS} positive divisors in the order "
                f"{', '.join(BAND_NAMES)}."
            )

    @property
    def channels_per_volume(self) -> int:
        """Network channels that one volume takes."""
        return NUM_BANDS if self.wavelet else 1

    @property
    def stride(self) -> int:
        """Voxels of the volume per voxel of the network's grid, along each axis."""
        return 2 if self.wavelet else 1

    def analysis(self, volumes: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, volumes, x, y, z)`` to ``(batch, volumes * channels_per_volume, x/stride, y/stride, z/stride)``."""
        if self.wavelet is None:
            return volumes
        return haar_analysis(volumes) / self._scales(volumes, volumes.shape[1])

    def synthesis(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Map coefficients back to volumes, the inverse of :meth:`analysis`."""
        if self.wavelet is None:
            return coefficients
        return haar_synthesis(coefficients * self._scales(coefficients, coefficients.shape[1] // NUM_BANDS))

    def _scales(self, like: torch.Tensor, num_volumes: int) -> torch.Tensor:
        scales = torch.tensor(self.band_scales, dtype=like.dtype, device=like.device)
        return scales.repeat(num_volumes).view(1, -1, 1, 1, 1)
