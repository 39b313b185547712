"""What `bench_informed_slices.py` measures of a set of volumes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from voxdiff.metrics.extractors.registry import load_extractor
from voxdiff.metrics.features import PLANES, extract_features
from voxdiff.metrics.intervals import pairwise_mean_interval
from voxdiff.metrics.perceptual import PerceptualBackbone, lpips
from voxdiff.metrics.similarity import draw_pairs, ms_ssim

EXTRACTOR = "cohort-2d"
SLICES = 16
_PAIRS = 300
_SLICE_STEP = 2


@dataclass(frozen=True)
class Reference:
    """What sets are measured against.

    Attributes:
        volumes: Case -> its real volume ``(1, x, y, z)`` in [0, 1].
        jumps: Mean :func:`slice_jumps` of the real volumes, ``(z - 1,)``.
        backbone: Of the perceptual distance.
    """

    volumes: dict[str, torch.Tensor]
    jumps: np.ndarray
    backbone: PerceptualBackbone


def make_reference(volumes: dict[str, torch.Tensor], backbone: PerceptualBackbone) -> Reference:
    """The reference of real volumes by case."""
    jumps = np.mean([slice_jumps(volume[0]) for volume in volumes.values()], axis=0)
    return Reference(volumes, jumps, backbone)


def measure_cases(
    volumes: Sequence[torch.Tensor],
    cases: Sequence[str],
    seams: Sequence[int],
    reference: Reference,
    *,
    paired: bool,
) -> list[dict[str, Any]]:
    """Measurements of each volume.

    Args:
        volumes: ``(1, x, y, z)`` in [0, 1].
        cases: Whose mask each volume has.
        seams: Slices whose next one was generated in another window; none for volumes that were made whole.
        reference: Of the real volumes of the same masks.
        paired: Whether the volumes have the masks of their cases unchanged, so that they can be held against the real
            ones: ``ms_ssim`` and ``perceptual``, the distance that the backbone names.

    Returns:
        A mapping a volume: ``case``; ``jump``, the mean step between axial slices over that of the real volumes at the
        same place, away from the seams; ``seam``, the same at the seams if there are any; and the paired ones.
    """
    found = []
    for volume, case in zip(volumes, cases, strict=True):
        record: dict[str, Any] = {"case": case, **jump_ratios(volume[0], seams, reference.jumps)}
        if paired:
            real = reference.volumes[case]
            record["ms_ssim"] = ms_ssim(volume[None], real[None]).item()
            record["perceptual"] = lpips(
                volume[None], real[None], backbone=reference.backbone, slice_step=_SLICE_STEP
            ).item()
        found.append(record)
    return found


def slice_jumps(volume: torch.Tensor) -> np.ndarray:
    """Mean absolute difference of neighbouring axial slices of ``(x, y, z)``: ``(z - 1,)``."""
    return volume.double().diff(dim=2).abs().mean((0, 1)).numpy()


def jump_ratios(volume: torch.Tensor, seams: Sequence[int], real_jumps: np.ndarray) -> dict[str, float]:
    """Summed steps between axial slices over the real ones, ``jump`` away from the seams and ``seam`` at them."""
    jumps, at_seam = slice_jumps(volume), np.zeros(len(real_jumps), dtype=bool)
    at_seam[list(seams)] = True
    ratios = {"jump": float(jumps[~at_seam].sum() / real_jumps[~at_seam].sum())}
    if at_seam.any():
        ratios["seam"] = float(jumps[at_seam].sum() / real_jumps[at_seam].sum())
    return ratios


def measure_diversity(volumes: Sequence[torch.Tensor], *, seed: int = 0) -> dict[str, float]:
    """Mean MS-SSIM of pairs within a set, with its interval; beside that of the real volumes, more is less diversity."""
    pairs = draw_pairs(len(volumes), _PAIRS, seed)
    values = [ms_ssim(volumes[first][None], volumes[second][None]).item() for first, second in pairs.tolist()]
    interval = pairwise_mean_interval(np.array(values), pairs)
    return {"mean": interval.estimate, "low": interval.low, "high": interval.high}


def plane_features(volumes: Sequence[torch.Tensor]) -> dict[str, np.ndarray]:
    """Plane -> features (volumes * :data:`SLICES`, features) of slices, volume by volume."""
    extractor = load_extractor(EXTRACTOR)
    return {
        plane: extract_features(extractor, volumes, plane=plane, slices_per_plane=SLICES).values for plane in PLANES
    }
