"""Diversity within the synthetic set, beside that of the real one: as diverse as the real volumes is best, not more."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from voxdiff.metrics.anchors import BlurredVolumes, anchor_sets
from voxdiff.metrics.fidelity import dot_product_mmd
from voxdiff.metrics.intervals import Interval, jackknife_variance, pairwise_mean_interval, t_interval
from voxdiff.metrics.markdown import estimate, number, table
from voxdiff.metrics.perceptual import PerceptualBackbone, lpips
from voxdiff.metrics.similarity import draw_pairs, ms_ssim

LPIPS_SLICE_STEP = 4
WITHOUT_DIVERSITY = ("mean image", "one repeated")
"""Anchors of which all pairs are equal: MS-SSIM 1, perceptual distance 0."""

Volumes = Sequence[torch.Tensor]


def measure_diversity(
    real: Volumes,
    synthetic: Volumes,
    anchor_reference: Volumes,
    other_real: Volumes,
    *,
    max_pairs: int,
    ms_ssim_settings: dict[str, Any],
    perceptual: PerceptualBackbone,
    seed: int = 0,
    on_pair: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Mean MS-SSIM and perceptual distance over random pairs within a set, and the MMD of the mean images.

    Args:
        real: (1, x, y, z) in [0, 1] each.
        synthetic: the same.
        anchor_reference: reals that the anchors of the MMD are compared with.
        other_real: further reals, none of them in the reference, which are its floor.
        max_pairs: pairs drawn within each set.
        ms_ssim_settings: arguments of :func:`voxdiff.metrics.similarity.ms_ssim`.
        perceptual: backbone of the perceptual distance.
        seed: of the pairs.
        on_pair: called after each pair.
    """
    similarity: dict[str, Any] = {}
    distance: dict[str, Any] = {}
    for name, volumes in (("synthetic", synthetic), ("real", real), ("blurred real", BlurredVolumes(real))):
        pairs = draw_pairs(len(volumes), max_pairs, seed)
        alike, apart = [], []
        for i, j in pairs.tolist():
            first, second = volumes[i][None], volumes[j][None]
            alike.append(ms_ssim(first, second, **ms_ssim_settings).item())
            apart.append(lpips(first, second, backbone=perceptual, slice_step=LPIPS_SLICE_STEP).item())
            if on_pair is not None:
                on_pair()
        similarity[name] = _row(pairwise_mean_interval(np.array(alike), pairs), 0.0, 1.0)
        distance[name] = _row(pairwise_mean_interval(np.array(apart), pairs), 0.0, np.inf)
    similarity |= {name: {"value": 1.0} for name in WITHOUT_DIVERSITY}
    distance |= {name: {"value": 0.0} for name in WITHOUT_DIVERSITY}
    return {
        "ms_ssim": similarity,
        perceptual.name: distance,
        "mmd_dot_product": {
            "synthetic": _row(_mmd_interval(real, synthetic)),
            **{
                name: {"value": dot_product_mmd(anchor_reference, volumes)}
                for name, volumes in anchor_sets(other_real).items()
            },
        },
        "pairs": len(pairs),
        "settings": ms_ssim_settings,
        "perceptual": {"name": perceptual.name, "sha256": perceptual.sha256, "slice_step": LPIPS_SLICE_STEP},
    }


def _row(found: Interval, least: float = -np.inf, most: float = np.inf) -> dict[str, float]:
    return {"value": found.estimate, "low": max(found.low, least), "high": min(found.high, most)}


def _mmd_interval(real: Volumes, synthetic: Volumes) -> Interval:
    """:func:`dot_product_mmd` with its jackknife over volumes, from the sums of the sets: no pair is held.

    It is on the safe side: for two sets of one distribution too wide by √2, as the terms that couple two volumes count
    twice.
    """
    sets = (real, synthetic)
    totals = [_total(volumes) for volumes in sets]
    parts = [_products(volumes, totals[place], totals[1 - place]) for place, volumes in enumerate(sets)]
    across = float(torch.dot(*totals)) / (len(real) * len(synthetic))
    estimate, variance = -2 * across, 0.0
    for place, (squares, own, other) in enumerate(parts):
        count = len(squares)
        within = own.sum() - squares.sum()
        without = (within - 2 * (own - squares)) / ((count - 1) * (count - 2))
        cross = (other.sum() - other) / ((count - 1) * len(sets[1 - place]))
        estimate += within / (count * (count - 1))
        variance += float(jackknife_variance(without - 2 * cross))
    scale = 1000 / len(totals[0])
    return t_interval(scale * estimate, scale**2 * variance, min(map(len, sets)) - 1, 0.95)


def _total(volumes: Volumes) -> torch.Tensor:
    """Sum of the volumes, (voxels,)."""
    total = torch.zeros(volumes[0].numel(), dtype=torch.float64)
    for volume in volumes:
        total += volume.flatten()
    return total


def _products(volumes: Volumes, own: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    """Products of each volume with itself, the sum of its set, and that of the other set: (3, number)."""
    voxels = (volume.flatten().double() for volume in volumes)
    return np.array([[float(v @ v), float(v @ own), float(v @ other)] for v in voxels]).T


def markdown(data: dict[str, Any]) -> str:
    """The three measures as a table."""
    measures = ["ms_ssim", data["perceptual"]["name"], "mmd_dot_product"]
    labels = ["MS-SSIM over pairs", f"{measures[1]} over pairs", "MMD x 10³ (dot product of voxels)"]
    sets = list(data["ms_ssim"])
    rows = [[name, *(estimate(data[measure].get(name)) for measure in measures)] for name in sets]
    settings = data["settings"]
    return (
        f"## Diversity\n\n{table(['set', *labels], rows)}\n"
        "Nearest to the real value is best, neither lower nor higher; of the MMD, 0. The mean image and one volume "
        "repeated have no diversity: MS-SSIM 1 and distance 0 by definition. "
        f"{data['pairs']} random pairs a set; MS-SSIM with {settings['scales']} scales, kernel "
        f"{settings['kernel_size']}, sigma {number(settings['sigma'])}; these values belong to their settings.\n"
    )
