"""Diversity within the synthetic set, beside that of the real one: as diverse as the real volumes is best, not more."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from voxdiff.metrics.anchors import BlurredVolumes
from voxdiff.metrics.fidelity import dot_product_mmd
from voxdiff.metrics.intervals import pairwise_mean_interval
from voxdiff.metrics.markdown import estimate, number, table
from voxdiff.metrics.perceptual import PerceptualBackbone, lpips
from voxdiff.metrics.similarity import draw_pairs, ms_ssim

LPIPS_SLICE_STEP = 4
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
        similarity[name] = _mean(alike, pairs)
        distance[name] = _mean(apart, pairs)
    return {
        "ms_ssim": similarity,
        perceptual.name: distance,
        "mmd_dot_product": {
            "synthetic": {"value": dot_product_mmd(real, synthetic)},
            "real": {"value": dot_product_mmd(anchor_reference, other_real)},
            "blurred real": {"value": dot_product_mmd(anchor_reference, BlurredVolumes(other_real))},
        },
        "pairs": len(pairs),
        "settings": ms_ssim_settings,
        "perceptual": {"name": perceptual.name, "sha256": perceptual.sha256, "slice_step": LPIPS_SLICE_STEP},
    }


def _mean(values: list[float], pairs: np.ndarray) -> dict[str, float]:
    found = pairwise_mean_interval(np.array(values), pairs)
    return {"value": found.estimate, "low": found.low, "high": found.high}


def markdown(data: dict[str, Any]) -> str:
    """The three measures as a table."""
    measures = ["ms_ssim", data["perceptual"]["name"], "mmd_dot_product"]
    labels = ["MS-SSIM over pairs", f"{measures[1]} over pairs", "MMD x 10³ (dot product of voxels)"]
    sets = list(data["ms_ssim"])
    rows = [[name, *(estimate(data[measure].get(name)) for measure in measures)] for name in sets]
    settings = data["settings"]
    return (
        f"## Diversity\n\n{table(['set', *labels], rows)}\n"
        "Nearest to the real value is best, neither lower nor higher; of the MMD, 0. "
        f"{data['pairs']} random pairs a set; MS-SSIM with {settings['scales']} scales, kernel "
        f"{settings['kernel_size']}, sigma {number(settings['sigma'])}; these values belong to their settings.\n"
    )
