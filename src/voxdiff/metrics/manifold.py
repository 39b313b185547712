"""Manifolds as unions of nearest-neighbour balls: precision, recall, density, coverage and rarity.

The ball of a point reaches to its k-th nearest other point of the same set; balls are closed, so that a copy of a
point lies inside even where the radius is 0. Distances are Euclidean, in float64, from differences and not from
expanded squares: a copy is at exactly 0. Pointwise values come with each share, for intervals.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from voxdiff.metrics.fidelity import check_features

_CHUNK_ROWS = 512  # rows of a distance matrix held at a time


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares of each set inside the manifold of the other one.

    Attributes:
        precision: share of synthetic points inside a ball of a real point.
        recall: share of real points inside a ball of a synthetic point.
        synthetic_inside: (number of synthetic points,), boolean, whose mean is the precision.
        real_inside: (number of real points,), boolean, whose mean is the recall.
    """

    precision: float
    recall: float
    synthetic_inside: np.ndarray
    real_inside: np.ndarray


@dataclass(frozen=True)
class DensityCoverage:
    """How full and how many of the real points' balls are.

    Attributes:
        density: mean number of real balls around a synthetic point, divided by k; above 1 where synthetic points crowd.
        coverage: share of real points whose ball holds a synthetic point.
        synthetic_density: (number of synthetic points,), whose mean is the density.
        real_covered: (number of real points,), boolean, whose mean is the coverage.
    """

    density: float
    coverage: float
    synthetic_density: np.ndarray
    real_covered: np.ndarray


@dataclass(frozen=True)
class RarityScores:
    """How rare among the real points each synthetic point is.

    Attributes:
        values: (number of synthetic points,), in feature units; NaN for a point outside all real balls.
        undefined_share: share of NaN.
    """

    values: np.ndarray
    undefined_share: float


def precision_recall(real: np.ndarray, synthetic: np.ndarray, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi 2019).

    Args:
        real: (number, features), more than k.
        synthetic: (number, features), more than k.
        k: neighbours that a ball reaches to.

    Raises:
        ValueError: wrong shapes, k below 1, or sets of no more than k points.
        ModuleNotFoundError: scipy is not installed.
    """
    real, synthetic = check_features(real, synthetic)
    real_radii, synthetic_radii = neighbour_radii(real, k), neighbour_radii(synthetic, k)
    synthetic_inside = np.zeros(len(synthetic), dtype=bool)
    real_inside = np.zeros(len(real), dtype=bool)
    for rows, distances in _distance_chunks(real, synthetic):
        synthetic_inside |= (distances <= real_radii[rows, None]).any(axis=0)
        real_inside[rows] = (distances <= synthetic_radii).any(axis=1)
    return PrecisionRecall(float(synthetic_inside.mean()), float(real_inside.mean()), synthetic_inside, real_inside)


def density_coverage(real: np.ndarray, synthetic: np.ndarray, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem 2020), which outliers of the real set disturb less than precision and recall.

    Args:
        real: (number, features), more than k.
        synthetic: (number, features).
        k: neighbours that a ball reaches to.

    Raises:
        ValueError: wrong shapes, k below 1, or no more than k real points.
        ModuleNotFoundError: scipy is not installed.
    """
    real, synthetic = check_features(real, synthetic)
    radii = neighbour_radii(real, k)
    balls = np.zeros(len(synthetic))
    covered = np.zeros(len(real), dtype=bool)
    for rows, distances in _distance_chunks(real, synthetic):
        inside = distances <= radii[rows, None]
        balls += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
    return DensityCoverage(float(balls.mean() / k), float(covered.mean()), balls / k, covered)


def rarity_scores(real: np.ndarray, synthetic: np.ndarray, k: int = 3) -> RarityScores:
    """Rarity scores (Han 2022): the smallest radius among the real points' balls that hold a synthetic point.

    Args:
        real: (number, features), more than k.
        synthetic: (number, features).
        k: neighbours that a ball reaches to.

    Raises:
        ValueError: wrong shapes, k below 1, or no more than k real points.
        ModuleNotFoundError: scipy is not installed.
    """
    real, synthetic = check_features(real, synthetic)
    radii = neighbour_radii(real, k)
    smallest = np.full(len(synthetic), np.inf)
    for rows, distances in _distance_chunks(real, synthetic):
        around = np.where(distances <= radii[rows, None], radii[rows, None], np.inf)
        smallest = np.minimum(smallest, around.min(axis=0))
    values = np.where(np.isinf(smallest), np.nan, smallest)
    return RarityScores(values, float(np.isnan(values).mean()))


def neighbour_radii(features: np.ndarray, k: int) -> np.ndarray:
    """Distance of each row to its k-th nearest other row: (number,).

    Raises:
        ValueError: k below 1, or no more than k rows.
        ModuleNotFoundError: scipy is not installed.
    """
    return np.concatenate([_radii(distances, k) for _, distances in _distance_chunks(features, features)])


def manifold_shares(
    within_real: np.ndarray, within_synthetic: np.ndarray, across: np.ndarray, *, k_precision: int, k_density: int
) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage from distances, for many subsets of the same points.

    Args:
        within_real: (number of real, number of real).
        within_synthetic: (number of synthetic, number of synthetic).
        across: (number of real, number of synthetic).
        k_precision: neighbours for precision and recall.
        k_density: neighbours for density and coverage.

    Raises:
        ValueError: a k below 1, or sets of no more than k points.
    """
    inside_real = across <= _radii(within_real, k_precision)[:, None]
    inside_synthetic = across <= _radii(within_synthetic, k_precision)
    filled = across <= _radii(within_real, k_density)[:, None]
    return (
        float(inside_real.any(axis=0).mean()),
        float(inside_synthetic.any(axis=1).mean()),
        float(filled.sum(axis=0).mean() / k_density),
        float(filled.any(axis=1).mean()),
    )


def pairwise_distances(real: np.ndarray, synthetic: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances within the real set, within the synthetic set, and from real to synthetic rows."""
    pairs = ((real, real), (synthetic, synthetic), (real, synthetic))
    within_real, within_synthetic, across = (
        np.concatenate([distances for _, distances in _distance_chunks(*pair)]) for pair in pairs
    )
    return within_real, within_synthetic, across


def _radii(distances: np.ndarray, k: int) -> np.ndarray:
    """k-th smallest distance of each row to the others; a row's own point is among its columns, at 0."""
    if not 1 <= k < distances.shape[1]:
        raise ValueError(f"Balls to neighbour {k} of {distances.shape[1]} points are undefined; give 1 <= k < points.")
    return np.partition(distances, k, axis=1)[:, k]


def _distance_chunks(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of the rows of `first`, each with its distances (rows, number of second)."""
    try:
        from scipy.spatial.distance import cdist
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Distances between features need scipy: pip install voxdiff[metrics].") from error
    for start in range(0, len(first), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        yield rows, cdist(first[rows], second)
