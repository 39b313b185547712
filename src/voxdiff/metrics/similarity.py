"""How alike volumes are: multi-scale structural similarity, and the distance to the nearest volume of another set."""

from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five scales (Wang 2003); with fewer scales, the first ones, made to sum to 1."""


def ms_ssim(
    volumes: torch.Tensor,
    others: torch.Tensor,
    *,
    data_range: float = 1.0,
    scales: int = 4,
    kernel_size: int = 5,
    sigma: float = 1.0,
) -> torch.Tensor:
    """Multi-scale structural similarity in 3D. The value belongs to its settings: the defaults are for 64³.

    Args:
        volumes: (batch, channels, x, y, z).
        others: the same shape.
        data_range: largest minus smallest possible value.
        scales: 1 to 5; each halves the grid.
        kernel_size: voxels a side of the Gaussian window.
        sigma: width of the window in voxels.

    Returns:
        (batch,), 1 for equal volumes.

    Raises:
        ValueError: the grid is too small for the scales.
        ModuleNotFoundError: monai is not installed.
    """
    try:
        from monai.metrics.regression import compute_ms_ssim
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("MS-SSIM needs monai: pip install voxdiff[metrics].") from error
    used = MS_SSIM_WEIGHTS[:scales]
    weights = [weight / sum(used) for weight in used]
    return compute_ms_ssim(
        volumes.float(),
        others.float(),
        spatial_dims=3,
        data_range=data_range,
        kernel_size=kernel_size,
        kernel_sigma=sigma,
        weights=weights,
    )[:, 0]


def pairwise_ms_ssim(volumes: torch.Tensor, *, max_pairs: int = 500, seed: int = 0, **settings) -> torch.Tensor:
    """MS-SSIM of random pairs within a set: high means little diversity; compare with the same of real volumes.

    Args:
        volumes: (number, channels, x, y, z), at least two.
        max_pairs: all pairs if there are no more than this, else as many drawn without repetition.
        seed: of the draw.
        settings: as for :func:`ms_ssim`.

    Returns:
        (pairs,).

    Raises:
        ValueError: fewer than two volumes.
    """
    if len(volumes) < 2:
        raise ValueError(f"Diversity was asked of {len(volumes)} volume(s); give at least 2.")
    pairs = np.array(list(combinations(range(len(volumes)), 2)))
    if len(pairs) > max_pairs:
        pairs = np.random.default_rng(seed).choice(pairs, max_pairs, replace=False)
    return torch.cat([ms_ssim(volumes[[first]], volumes[[second]], **settings) for first, second in pairs.tolist()])


def nearest_distances(volumes: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance of each volume to its nearest reference: root mean square difference of the 2x2x2 means.

    Distances that lie below those of held-out subjects to the same references are a sign of memorised references.

    Args:
        volumes: (number, channels, x, y, z) with even sizes.
        references: (number of references, channels, x, y, z).

    Returns:
        The distances and the indices of the nearest references, (number,) each.
    """
    coarse, coarse_references = (F.avg_pool3d(item.float(), 2).flatten(1) for item in (volumes, references))
    # The default would subtract large squares, and read a copy as far away.
    distances = torch.cdist(coarse, coarse_references, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.min(dim=1)
    return nearest.values / coarse.shape[1] ** 0.5, nearest.indices
