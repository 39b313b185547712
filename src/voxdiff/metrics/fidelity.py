"""How far a synthetic set is from a real one: Fréchet distance, maximum mean discrepancies, Inception Score.

Features are the rows of an array (number, features) from one named extractor; statistics are computed in float64.
:func:`check_count` says for how many volumes each statistic exists, and when it says little.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

_CHUNK_ROWS = 1024  # rows of a kernel or distance matrix held at a time
_MEDIAN_ROWS = 4000  # rows whose pairs give the median distance
_ROUNDING = 1e-12  # of the squared norms: what the expanded squared distance may be wrong by

# Two sets of one isotropic Gaussian differ by 5 % of its total variance at 10 samples a feature, by 55 % at 1.
_FID_ROWS_PER_FEATURE = 10

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Requirement:
    """How many samples a statistic needs.

    Attributes:
        minimum: fewest in each set for which it is defined.
        enough: fewest in each set for which it is not warned about.
        reason: what is wrong with fewer than enough.
        sets: the sets that it is computed on.
    """

    minimum: int
    enough: int
    reason: str
    sets: tuple[str, ...] = ("real", "synthetic")


REQUIREMENTS: dict[str, Requirement] = {
    "fid": Requirement(2, 50, "it scatters widely; read it with its interval"),
    "kid": Requirement(2, 50, "it scatters widely, below 0 too; read it with its interval"),
    "gaussian_mmd": Requirement(2, 50, "it scatters widely, below 0 too; read it with its interval"),
    "dot_product_mmd": Requirement(2, 50, "it scatters widely, below 0 too; read it with its interval"),
    "inception_score": Requirement(2, 100, "it falls with N, for the same distribution too", ("synthetic",)),
    "precision_recall": Requirement(4, 50, "balls of so few points say little about a manifold"),
    "density_coverage": Requirement(6, 50, "balls of so few points say little about a manifold"),
    "rarity": Requirement(4, 50, "balls of so few points say little about a manifold", ("real",)),
}
"""The minimum is that of the definition, with the default k of neighbours (3, 5 and 3); enough is a rule of thumb."""


def check_count(metric: str, num_real: int, num_synthetic: int, num_features: int | None = None) -> list[str]:
    """Whether a statistic can be computed from so many samples, and trusted.

    Args:
        metric: a key of `REQUIREMENTS`.
        num_real: number of real samples.
        num_synthetic: number of synthetic samples.
        num_features: length of a feature vector, which the Fréchet distance is judged by.

    Returns:
        One sentence for each doubt; empty if there is none.

    Raises:
        ValueError: the metric is unknown, or undefined for so few.
    """
    if metric not in REQUIREMENTS:
        raise ValueError(f"The metric {metric!r} is unknown; choose from {', '.join(REQUIREMENTS)}.")
    need = REQUIREMENTS[metric]
    counts = {"real": num_real, "synthetic": num_synthetic}
    fewest = min(need.sets, key=lambda name: counts[name])
    found = counts[fewest]
    if found < need.minimum:
        raise ValueError(f"{metric} is undefined for {found} {fewest} sample(s); give at least {need.minimum}.")
    warnings = []
    if found < need.enough:
        warnings.append(f"{metric} of {found} {fewest} samples (fewer than {need.enough}): {need.reason}.")
    if metric == "fid" and num_features is not None and found < _FID_ROWS_PER_FEATURE * num_features:
        rank = "rank-deficient" if found <= num_features else "estimated from few samples"
        warnings.append(
            f"fid of {found} {fewest} samples with {num_features} features: the covariance is {rank} and equal "
            f"distributions come out far above 0; compare values at equal N only, or give {_FID_ROWS_PER_FEATURE} "
            "samples a feature."
        )
    return warnings


def check_features(*sets: np.ndarray) -> list[np.ndarray]:
    """Feature sets as float64.

    Raises:
        ValueError: a set is not (number, features), is empty or not finite, or the sets differ in their features.
    """
    arrays = [np.asarray(features, dtype=np.float64) for features in sets]
    for features in arrays:
        if features.ndim != 2 or 0 in features.shape:
            raise ValueError(f"Features have shape {features.shape}; give (number, features), neither of them 0.")
        if not np.isfinite(features).all():
            raise ValueError("Features hold NaN or infinity; look for the volumes that gave them.")
    widths = {features.shape[1] for features in arrays}
    if len(widths) > 1:
        raise ValueError(f"Sets have {sorted(widths)} features each; give features of one extractor.")
    return arrays


def frechet_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Fréchet distance between Gaussians fitted to features, known as FID (Heusel 2017).

    ‖μ_R − μ_S‖² + tr(Σ_R + Σ_S − 2 (Σ_R Σ_S)^½), with covariances over N − 1. The trace of the square root is the
    nuclear norm of A_R A_Sᵀ with Σ = AᵀA: no matrix square root, and exact where N is below the number of features.

    Args:
        real: (number, features), at least 2.
        synthetic: (number, features), at least 2.

    Returns:
        In squared feature units; 0 for equal moments.

    Raises:
        ValueError: wrong shapes, too few rows, or features that are not finite.
    """
    real, synthetic = check_features(real, synthetic)
    check_count("fid", len(real), len(synthetic))
    root_real, root_synthetic = _covariance_root(real), _covariance_root(synthetic)
    means = np.sum((real.mean(0) - synthetic.mean(0)) ** 2)
    traces = np.sum(root_real**2) + np.sum(root_synthetic**2)
    overlap = np.linalg.svd(root_real @ root_synthetic.T, compute_uv=False).sum()
    return max(0.0, float(means + traces - 2 * overlap))  # rounding alone could make it negative


def _covariance_root(features: np.ndarray) -> np.ndarray:
    """A matrix A (at most as many rows as features) with AᵀA the covariance."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(features) > features.shape[1] else centred


def kernel_inception_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    """KID (Bińkowski 2018): the unbiased squared MMD with k(x, y) = (x·y / features + 1)³; slightly negative at times.

    Args:
        real: (number, features), at least 2.
        synthetic: (number, features), at least 2.

    Raises:
        ValueError: wrong shapes, too few rows, or features that are not finite.
    """
    return polynomial_mmd(real, synthetic)


def polynomial_mmd(real: np.ndarray, synthetic: np.ndarray, *, degree: int = 3, offset: float = 1.0) -> float:
    """Unbiased squared MMD over all pairs with k(x, y) = (x·y / features + offset)^degree; arguments as for KID."""
    real, synthetic = check_features(real, synthetic)
    check_count("kid", len(real), len(synthetic))
    return _unbiased_mmd(partial(polynomial_kernel, degree=degree, offset=offset), real, synthetic)


def polynomial_kernel(first: np.ndarray, second: np.ndarray, *, degree: int = 3, offset: float = 1.0) -> np.ndarray:
    """(x·y / features + offset)^degree for all pairs of rows: (number of first, number of second)."""
    return (first @ second.T / first.shape[1] + offset) ** degree


def gaussian_mmd(real: np.ndarray, synthetic: np.ndarray, *, width: float | str = "median") -> float:
    """Unbiased squared MMD with k(x, y) = exp(−‖x − y‖² / (2 width²)) (Gretton 2012).

    3D MedDiffusion (after HA-GAN) calls a fork of torch-two-sample with a kernel of median width on 2048 features of
    MedicalNet. That fork was not available to compare with: its scaling of the median may be another one.

    Args:
        real: (number, features), at least 2.
        synthetic: (number, features), at least 2.
        width: in feature units; "median" for the median distance over the pairs of the two sets together (of 4000
            rows spread evenly where there are more), so that each pair of sets has a width of its own.

    Raises:
        ValueError: wrong shapes, too few rows, features that are not finite, or a width that is not positive.
    """
    real, synthetic = check_features(real, synthetic)
    check_count("gaussian_mmd", len(real), len(synthetic))
    if isinstance(width, str):
        if width != "median":
            raise ValueError(f'The width {width!r} is unknown; give a number or "median".')
        width = median_distance(np.concatenate([real, synthetic]))
    return _unbiased_mmd(gaussian_kernel(width), real, synthetic)


def gaussian_kernel(width: float) -> Kernel:
    """A kernel of two feature sets, exp(−‖x − y‖² / (2 width²)) for all pairs of rows.

    Raises:
        ValueError: the width is not positive.
    """
    if not width > 0:
        raise ValueError(f"A Gaussian kernel of width {width} is undefined; give a positive width, distinct features.")

    def kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 / width**2 * _squared_distances(first, second))

    return kernel


def median_distance(features: np.ndarray) -> float:
    """Median distance over the pairs of rows; of 4000 rows spread evenly where there are more."""
    if len(features) > _MEDIAN_ROWS:
        features = features[np.linspace(0, len(features) - 1, _MEDIAN_ROWS).astype(int)]
    pairs = np.triu_indices(len(features), 1)
    return float(np.median(np.sqrt(_squared_distances(features, features)[pairs])))


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """‖x‖² + ‖y‖² − 2 x·y, with 0 for what is below its rounding: five times as fast as differences at 2048 features."""
    centre = first.mean(0)
    first, second = first - centre, second - centre
    norms = np.sum(first**2, axis=1)[:, None] + np.sum(second**2, axis=1)
    squared = norms - 2 * first @ second.T
    return np.where(squared < _ROUNDING * norms, 0, squared)


def _unbiased_mmd(kernel: Kernel, real: np.ndarray, synthetic: np.ndarray) -> float:
    within = _mean_within(kernel, real) + _mean_within(kernel, synthetic)
    across = sum(float(kernel(rows, synthetic).sum()) for rows in _chunks(real))
    return within - 2 * across / (len(real) * len(synthetic))


def _mean_within(kernel: Kernel, features: np.ndarray) -> float:
    """Mean of the kernel over the pairs of different rows."""
    total, start = 0.0, 0
    for rows in _chunks(features):
        block = kernel(rows, features)
        total += float(block.sum() - block.diagonal(start).sum())
        start += len(rows)
    return total / (len(features) * (len(features) - 1))


def _chunks(features: np.ndarray) -> list[np.ndarray]:
    return [features[start : start + _CHUNK_ROWS] for start in range(0, len(features), _CHUNK_ROWS)]


def dot_product_mmd(real: Iterable[Any], synthetic: Iterable[Any], *, unbiased: bool = True) -> float:
    """Squared MMD of the voxels with the dot product as kernel, × 10³: it compares the two mean images only.

    Here the kernel is the mean over voxels of x·y, which makes the value independent of the grid. The scripts of the
    3D α-WGAN lineage (Kwon 2019), which cDPM's table follows, sum over voxels and average the biased statistic over
    small batches; biased means that two sets of one distribution come out at the sum of variance / number of both.

    Args:
        real: volumes of one shape on the scale of the report, an array (number, ...) or any iterable that is read
            once, one volume at a time.
        synthetic: the same.
        unbiased: without the pairs of a volume with itself.

    Raises:
        ValueError: fewer than two volumes in a set, other shapes, or voxels that are not finite.
    """
    sums, squares, counts = zip(*(_voxel_sums(volumes) for volumes in (real, synthetic)), strict=True)
    check_count("dot_product_mmd", *counts)
    if sums[0].shape != sums[1].shape:
        raise ValueError(f"Volumes have shapes {sums[0].shape} and {sums[1].shape}; resample them to one grid.")
    within = [
        (np.vdot(total, total) - square) / (count * (count - 1)) if unbiased else np.vdot(total, total) / count**2
        for total, square, count in zip(sums, squares, counts, strict=True)
    ]
    across = np.vdot(*sums) / (counts[0] * counts[1])
    return float(1000 * (within[0] + within[1] - 2 * across) / sums[0].size)


def _voxel_sums(volumes: Iterable[Any]) -> tuple[np.ndarray, float, int]:
    """Sum of the volumes, sum of their squared norms, and their number."""
    total, squares, count = np.zeros(0), 0.0, 0
    for volume in volumes:
        voxels = np.asarray(volume, dtype=np.float64)
        if count == 0:
            total = np.zeros_like(voxels)
        if voxels.shape != total.shape or not np.isfinite(voxels).all():
            raise ValueError(
                f"Volume {count} of shape {voxels.shape} differs from {total.shape} or is not finite; give volumes of "
                "one grid without NaN."
            )
        total += voxels
        squares += float(np.vdot(voxels, voxels))
        count += 1
    return total, squares, count


def inception_score(probabilities: np.ndarray) -> float:
    """exp of the mean KL divergence of p(class | volume) from their mean p(class) (Salimans 2016).

    Args:
        probabilities: (number, classes), each row summing to 1; of an extractor that classifies.

    Returns:
        1 (all alike) to the number of classes (sure about each volume, classes equally frequent).

    Raises:
        ValueError: rows that are not probabilities, or fewer than two of them.
    """
    (conditional,) = check_features(probabilities)
    check_count("inception_score", 0, len(conditional))
    if conditional.min() < 0 or not np.allclose(conditional.sum(1), 1, atol=1e-4):
        raise ValueError("Rows of class probabilities must be at least 0 and sum to 1; apply softmax to logits.")
    marginal = conditional.mean(0)
    ratio = np.divide(conditional, marginal, out=np.ones_like(conditional), where=conditional > 0)
    return float(np.exp(np.mean(np.sum(conditional * np.log(ratio), axis=1))))
