"""Grids in millimetres, sampling on them, and diffeomorphic deformations by stationary velocity fields.

Every volume here is a cube `fov_mm` wide, centred at 0 mm, whatever its number of voxels: (channels, size, size, size).
Points and displacements are in mm: (3, x, y, z).
"""

from functools import lru_cache

import torch
import torch.nn.functional as F


@lru_cache(maxsize=16)
def voxel_centres(size: int, fov_mm: float) -> torch.Tensor:
    """Positions in mm of the voxel centres of a cubic grid: (3, size, size, size). Shared: never write into it."""
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) * (fov_mm / size) - fov_mm / 2
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))


def sample_at(
    volume: torch.Tensor, points: torch.Tensor, fov_mm: float, *, mode: str = "bilinear", padding: str = "zeros"
) -> torch.Tensor:
    """Values of a volume (channels, m, m, m) at points (3, x, y, z) in mm: (channels, x, y, z)."""
    grid = (points * (2 / fov_mm)).flip(0).permute(1, 2, 3, 0)
    return F.grid_sample(volume[None], grid[None], mode=mode, padding_mode=padding, align_corners=False)[0]


def resize_field(field: torch.Tensor, size: int) -> torch.Tensor:
    """A smooth field (channels, m, m, m) on another grid of the same cube, trilinearly."""
    if field.shape[-1] == size:
        return field
    return F.interpolate(field[None], size=(size,) * 3, mode="trilinear", align_corners=False)[0]


def average_down(volume: torch.Tensor, size: int) -> torch.Tensor:
    """A volume (channels, m, m, m) averaged over the voxels of a coarser grid; the integral is kept."""
    if volume.shape[-1] <= size:
        return volume
    weights = _overlap_weights(volume.shape[-1], size)
    for axis in (1, 2, 3):
        volume = torch.tensordot(volume, weights, dims=([axis], [1])).movedim(-1, axis)
    return volume.contiguous()


@lru_cache(maxsize=16)
def _overlap_weights(size_in: int, size_out: int) -> torch.Tensor:
    """Share of each input interval in each output interval of the same segment: (size_out, size_in), rows sum to 1."""
    edges_in = torch.arange(size_in + 1, dtype=torch.float64) / size_in
    edges_out = torch.arange(size_out + 1, dtype=torch.float64) / size_out
    upper = torch.minimum(edges_out[1:, None], edges_in[None, 1:])
    lower = torch.maximum(edges_out[:-1, None], edges_in[None, :-1])
    return ((upper - lower).clamp_min(0) * size_out).float()


def exponentiate(velocity: torch.Tensor, fov_mm: float, *, steps: int = 5) -> torch.Tensor:
    """Displacement in mm of exp(velocity) by scaling and squaring: (3, m, m, m) to (3, m, m, m)."""
    points = voxel_centres(velocity.shape[-1], fov_mm)
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = displacement + sample_at(displacement, points + displacement, fov_mm, padding="border")
    return displacement


def jacobian_determinant(displacement: torch.Tensor, fov_mm: float) -> torch.Tensor:
    """Determinant of the Jacobian of x + displacement(x): (m, m, m). Positive where the map does not fold."""
    spacing = fov_mm / displacement.shape[-1]
    rows = [torch.stack(torch.gradient(component, spacing=spacing, dim=(0, 1, 2))) for component in displacement]
    a, b, c = (row + unit[:, None, None, None] for row, unit in zip(rows, torch.eye(3), strict=True))
    return (a * torch.linalg.cross(b, c, dim=0)).sum(0)
