"""How alike volumes are: multi-scale structural similarity, and the distance to the nearest volume of another set."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F

from voxdiff.metrics.structural import multiscale_ssim


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
    """
    found = multiscale_ssim(volumes, others, data_range=data_range, scales=scales, kernel_size=kernel_size, sigma=sigma)
    return found.float()


def pairwise_ms_ssim(
    volumes: Sequence[torch.Tensor] | torch.Tensor, *, max_pairs: int = 500, seed: int = 0, **settings
) -> torch.Tensor:
    """MS-SSIM of random pairs within a set: high means little diversity; compare with the same of real volumes.

    Args:
        volumes: at least two of (channels, x, y, z), or one tensor of them.
        max_pairs: see :func:`draw_pairs`, which tells the pairs.
        seed: of the draw.
        settings: as for :func:`ms_ssim`.

    Returns:
        (pairs,).

    Raises:
        ValueError: fewer than two volumes.
    """
    pairs = draw_pairs(len(volumes), max_pairs, seed)
    return torch.cat([ms_ssim(volumes[i][None], volumes[j][None], **settings) for i, j in pairs.tolist()])


def draw_pairs(number: int, max_pairs: int, seed: int) -> np.ndarray:
    """Pairs of places (pairs, 2): all if there are no more than `max_pairs`, else as many without repetition.

    Raises:
        ValueError: fewer than two places.
    """
    if number < 2:
        raise ValueError(f"Diversity was asked of {number} volume(s); give at least 2.")
    pairs = np.array(list(combinations(range(number), 2)))
    return pairs if len(pairs) <= max_pairs else np.random.default_rng(seed).choice(pairs, max_pairs, replace=False)


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
