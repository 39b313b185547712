"""Confidence intervals for the statistics of sets: jackknife where a bootstrap would be wrong, bootstrap for means.

A bootstrap draws items more than once. Copies are neighbours at distance 0, pairs of an item with itself, and a
covariance of fewer items: it biases the Fréchet distance, MMD, precision and coverage. The jackknife leaves items out
instead. Its intervals say how far a value would move with other samples of the same number; they do not contain the
bias that a statistic has at this number (the Fréchet distance falls as N grows, and no interval here says to what).

Rows that belong together (slices of one volume, volumes of one patient) are given as groups and stay together.

Coverage is that measured by `benchmarks/bench_intervals.py` at a nominal 95 %: Gaussian features (16 and 64), sets of 50
(200 repetitions) and 200 (80), equal and shifted. A percentile bootstrap of 50 rows held FID in no repetition.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxdiff.metrics.fidelity import check_features
from voxdiff.metrics.manifold import manifold_shares, pairwise_distances


@dataclass(frozen=True)
class Interval:
    """A statistic with its uncertainty.

    Attributes:
        estimate: the statistic of all samples.
        low: lower end.
        high: upper end.
        standard_error: in the statistic's unit.
        level: probability with which such an interval is meant to hold the statistic's expected value.
    """

    estimate: float
    low: float
    high: float
    standard_error: float
    level: float = 0.95


def jackknife_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    real: np.ndarray,
    synthetic: np.ndarray,
    *,
    real_groups: Sequence[int] | None = None,
    synthetic_groups: Sequence[int] | None = None,
    num_blocks: int = 20,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of any statistic of two sets by leaving out random blocks of each set in turn (Shao and Wu 1989).

    It is on the safe side, most of all where the sets are of one distribution: the terms that couple two samples count
    twice in a jackknife. Measured coverage: 96 to 100 % for FID (standard errors 1.05 to 1.7 times the true ones), 91
    to 100 % for the Wasserstein distance of one factor.

    Args:
        statistic: of rows of the real and rows of the synthetic set, such as `frechet_distance`; it is called
            2 x `num_blocks` + 1 times.
        real: (number, ...).
        synthetic: (number, ...).
        real_groups: (number,), the group of each row, such as the index of a slice's volume; None for rows of their own.
        synthetic_groups: the same for the synthetic rows.
        num_blocks: that each set is cut into; no more than there are groups.
        level: of confidence.
        seed: of the cut into blocks.

    Raises:
        ValueError: fewer than 3 groups or blocks, group labels of another number, or a level outside (0, 1).
        ModuleNotFoundError: scipy is not installed.
    """

    def of_rows(real_rows: np.ndarray, synthetic_rows: np.ndarray) -> list[float]:
        return [statistic(real[real_rows], synthetic[synthetic_rows])]

    units = (unit_indices(len(real), real_groups), unit_indices(len(synthetic), synthetic_groups))
    return _block_jackknife(of_rows, *units, num_blocks, level, seed)[0]


def manifold_intervals(
    real: np.ndarray,
    synthetic: np.ndarray,
    *,
    k_precision: int = 3,
    k_density: int = 5,
    real_groups: Sequence[int] | None = None,
    synthetic_groups: Sequence[int] | None = None,
    num_blocks: int = 20,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of "precision", "recall", "density" and "coverage" by :func:`jackknife_interval` on both sets.

    Measured coverage: 94 to 100 %, with standard errors 1.1 to 2.1 times the true ones. A bootstrap of precision's
    indicators takes the real manifold as known and covers 81 to 91 %. Ends are symmetric and may pass 0 or 1.

    Args:
        real: (number, features); distances between all rows of both sets are held in memory.
        synthetic: (number, features).
        k_precision: neighbours for precision and recall.
        k_density: neighbours for density and coverage.
        real_groups: as for :func:`jackknife_interval`, like the arguments that follow.
        synthetic_groups: the same for the synthetic rows.
        num_blocks: that each set is cut into.
        level: of confidence.
        seed: of the cut into blocks.

    Raises:
        ValueError: as for :func:`jackknife_interval`; too few rows for k.
        ModuleNotFoundError: scipy is not installed.
    """
    real, synthetic = check_features(real, synthetic)
    within_real, within_synthetic, across = pairwise_distances(real, synthetic)

    def of_rows(real_rows: np.ndarray, synthetic_rows: np.ndarray) -> list[float]:
        shares = manifold_shares(
            within_real[np.ix_(real_rows, real_rows)],
            within_synthetic[np.ix_(synthetic_rows, synthetic_rows)],
            across[np.ix_(real_rows, synthetic_rows)],
            k_precision=k_precision,
            k_density=k_density,
        )
        return list(shares)

    units = (unit_indices(len(real), real_groups), unit_indices(len(synthetic), synthetic_groups))
    intervals = _block_jackknife(of_rows, *units, num_blocks, level, seed)
    return dict(zip(("precision", "recall", "density", "coverage"), intervals, strict=True))


def mean_interval(
    values: np.ndarray,
    *,
    groups: Sequence[int] | None = None,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of values that belong to one item each, such as PSNR or a rarity score: bootstrap.

    Percentiles of the means of resampled items, or of resampled groups with all their items. Measured coverage: 93 to
    95 % for normal values, 87 to 94 % for log-normal ones.

    Args:
        values: (number,), finite.
        groups: (number,), the group of each value; None for values of their own.
        num_resamples: bootstrap samples.
        level: of confidence.
        seed: of the resampling.

    Raises:
        ValueError: fewer than two values or groups, values that are not finite, or a level outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    units = unit_indices(len(values), groups)
    count = len(np.unique(units))
    if count < 2 or not np.isfinite(values).all():
        raise ValueError(f"An interval of {count} independent value(s) is undefined; give at least 2, all finite.")
    _check_level(level)
    sums, sizes = np.bincount(units, values), np.bincount(units)
    generator = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    for index in range(num_resamples):
        drawn = generator.integers(count, size=count)
        means[index] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), float(means.std(ddof=1)), level)


def pairwise_mean_interval(values: np.ndarray, pairs: np.ndarray, *, level: float = 0.95) -> Interval:
    """Interval of a mean over pairs of items, such as MS-SSIM within a set: pairs that share an item are dependent.

    Jackknife over items, less what each pair's own scatter adds to it, which two items would both count (the
    variance of dyadic data, Aronow, Samii and Assenova 2015). Pairs may be all or a few. Measured coverage: 91 to 97 %.

    Args:
        values: (pairs,), finite.
        pairs: (pairs, 2), the two items of each.
        level: of confidence.

    Raises:
        ValueError: fewer than 3 items, an item that is in every pair or paired with itself, or values not finite.
        ModuleNotFoundError: scipy is not installed.
    """
    values, pairs = np.asarray(values, dtype=np.float64), np.asarray(pairs)
    if values.ndim != 1 or pairs.shape != (len(values), 2) or not np.isfinite(values).all():
        raise ValueError(f"Values of shape {values.shape} of pairs {pairs.shape} do not match or are not finite.")
    items, members = np.unique(pairs, return_inverse=True)
    members = members.reshape(pairs.shape)
    degrees = np.bincount(members.ravel(), minlength=len(items))
    if len(items) < 3 or degrees.max() >= len(values) or (members[:, 0] == members[:, 1]).any():
        raise ValueError(
            f"{len(values)} pairs of {len(items)} items give no interval; give pairs of different items of which none "
            "is in every pair."
        )
    residuals = values - values.mean()
    shares = np.bincount(members.ravel(), np.repeat(residuals, 2)) / (len(values) - degrees)
    own = float(np.sum(residuals**2)) / len(values) ** 2
    jackknife = (len(items) - 1) / len(items) * float(np.sum(shares**2))
    return t_interval(float(values.mean()), max(jackknife - own, own), len(items) - 1, level)


def unit_indices(number: int, groups: Sequence[int] | None) -> np.ndarray:
    """Indices 0, 1, … of the group of each row, or of the rows themselves: (number,).

    Raises:
        ValueError: as many labels as rows are not given.
    """
    if groups is None:
        return np.arange(number)
    if len(groups) != number:
        raise ValueError(f"{len(groups)} group labels were given for {number} rows; give one a row.")
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def _block_jackknife(
    statistics: Callable[[np.ndarray, np.ndarray], list[float]],
    real_units: np.ndarray,
    synthetic_units: np.ndarray,
    num_blocks: int,
    level: float,
    seed: int,
) -> list[Interval]:
    """Intervals of statistics of kept row numbers of both sets."""
    generator = np.random.default_rng(seed)
    all_rows = (np.arange(len(real_units)), np.arange(len(synthetic_units)))
    estimates = statistics(*all_rows)
    variances = np.zeros(len(estimates))
    freedom = num_blocks - 1
    for which, units in enumerate((real_units, synthetic_units)):
        count = int(units.max()) + 1
        blocks = min(num_blocks, count)
        if blocks < 3:
            raise ValueError(
                f"A jackknife of {blocks} blocks is undefined; give at least 3 independent rows and blocks."
            )
        block_of_row = generator.permutation(np.arange(count) % blocks)[units]
        left_out = []
        for block in range(blocks):
            kept = list(all_rows)
            kept[which] = np.flatnonzero(block_of_row != block)
            left_out.append(statistics(*kept))
        variances += jackknife_variance(np.array(left_out))
        freedom = min(freedom, blocks - 1)
    return [
        t_interval(estimate, variance, freedom, level) for estimate, variance in zip(estimates, variances, strict=True)
    ]


def jackknife_variance(left_out: np.ndarray) -> Any:
    """Variance of a statistic from its values without each of the parts: over the first axis."""
    return (len(left_out) - 1) * left_out.var(axis=0)


def t_interval(estimate: float, variance: float, freedom: int, level: float) -> Interval:
    """Interval around an estimate by Student's distribution.

    Raises:
        ValueError: the level is not between 0 and 1.
        ModuleNotFoundError: scipy is not installed.
    """
    try:
        from scipy.stats import t
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Intervals need scipy: pip install voxdiff[metrics].") from error
    _check_level(level)
    standard_error = float(np.sqrt(variance))
    reach = float(t.ppf((1 + level) / 2, freedom)) * standard_error
    return Interval(float(estimate), float(estimate - reach), float(estimate + reach), standard_error, level)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"A confidence level of {level} is not between 0 and 1; give one such as 0.95.")
