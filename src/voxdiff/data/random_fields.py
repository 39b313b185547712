"""Independent random streams keyed by name, and smooth random fields on fixed physical grids.

Every random quantity of a simulated subject has its own stream, keyed by (seed, name): asking for one more quantity
never shifts the others. Fields are drawn on grids fixed in millimetres, so that the patient does not depend on the grid
the volume is rendered on.
"""

import hashlib
import math
from functools import lru_cache

import numpy as np
import torch


class RandomStream:
    """The random numbers of one key, e.g. ``RandomStream(17, "anatomy")``."""

    def __init__(self, *key: int | str) -> None:
        digest = hashlib.sha256("|".join(str(part) for part in key).encode()).digest()
        self._generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))

    def uniform(self, low: float, high: float) -> float:
        """One number between `low` and `high`."""
        return float(low + (high - low) * self._generator.random())

    def normal(self) -> float:
        """One standard normal number."""
        return float(self._generator.standard_normal())

    def coin(self) -> bool:
        """True or False with equal chances."""
        return bool(self._generator.random() < 0.5)

    def normals(self, *shape: int) -> torch.Tensor:
        """A float32 tensor of standard normal numbers."""
        return torch.from_numpy(self._generator.standard_normal(shape, dtype=np.float32))

    def field(self, channels: int, size: int, sigma_mm: float, fov_mm: float) -> torch.Tensor:
        """Gaussian random fields of unit variance and correlation length `sigma_mm` on a cube `fov_mm` wide.

        Returns:
            float32 tensor (channels, size, size, size); the field is periodic over the cube.
        """
        spectrum = torch.fft.rfftn(self.normals(channels, size, size, size), dim=(1, 2, 3))
        spectrum *= _gaussian_transfer(size, sigma_mm, fov_mm)
        smooth = torch.fft.irfftn(spectrum, s=(size,) * 3, dim=(1, 2, 3))
        return smooth / smooth.std(dim=(1, 2, 3), keepdim=True)


@lru_cache(maxsize=32)
def _gaussian_transfer(size: int, sigma_mm: float, fov_mm: float) -> torch.Tensor:
    """Fourier transform of a Gaussian of `sigma_mm`, on the half-spectrum of a cubic grid."""
    full = torch.fft.fftfreq(size, fov_mm / size)
    half = torch.fft.rfftfreq(size, fov_mm / size)
    squared = full[:, None, None] ** 2 + full[None, :, None] ** 2 + half[None, None] ** 2
    return torch.exp(-2 * math.pi**2 * sigma_mm**2 * squared)
