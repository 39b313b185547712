"""How far measured factors (brain volume, lesion size, …) of a synthetic set are distributed from those of a real one."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from voxdiff.metrics.intervals import Interval, jackknife_interval

_SPLITS = 100  # random halves of the real set
_CONSTANT = 1e-6  # standard deviation over the mean below which a factor varies by rounding (of float32 voxels) only


@dataclass(frozen=True)
class Ratio:
    """A number in units of the real set's standard deviation.

    Attributes:
        estimate: None where the real set does not vary.
        low: lower end of the 95 % interval, at least 0; None where the variation hangs on a few of the volumes.
        high: upper end.
        standard_error: of the estimate.
    """

    estimate: float | None
    low: float | None
    high: float | None
    standard_error: float | None


@dataclass(frozen=True)
class FactorDistance:
    """Comparison of the distributions of one factor.

    Attributes:
        wasserstein: Wasserstein-1 distance in the factor's unit.
        wasserstein_in_sd: the same in the real set's standard deviations.
        spread_ratio: standard deviation of the synthetic set over that of the real one.
        real_mean: in the factor's unit.
        synthetic_mean: in the factor's unit.
        real_sd: standard deviation over N − 1, in the factor's unit.
        synthetic_sd: the same of the synthetic set.
        floor: mean distance between random halves of the real set, in the factor's unit. Halves are smaller than the
            set, so that two sets as large as the real one would come out lower, by about √2.
        floor_high: 95th percentile of the same.
    """

    wasserstein: Interval
    wasserstein_in_sd: Ratio
    spread_ratio: Ratio
    real_mean: float
    synthetic_mean: float
    real_sd: float
    synthetic_sd: float
    floor: float
    floor_high: float


def factor_distances(
    real: Sequence[Mapping[str, float]], synthetic: Sequence[Mapping[str, float]], *, seed: int = 0
) -> dict[str, FactorDistance]:
    """Compare the distributions of each factor, with 95 % jackknife intervals (20 blocks) and a real-real floor.

    Intervals hold the expected value for so many samples and end at 0; a Wasserstein distance is above 0 for equal
    distributions, which is why the floor stands beside it.

    Args:
        real: one mapping of factor names to values for each volume, such as `asdict(brain_factors(...))`; at least 4.
        synthetic: the same of the synthetic volumes; at least 4.
        seed: of the halves and of the blocks.

    Returns:
        By factor, in the order of the first real mapping.

    Raises:
        ValueError: fewer than 4 volumes in a set, a factor that some volume lacks, or a value that is not finite.
        ModuleNotFoundError: scipy is not installed.
    """
    fewest = min(len(real), len(synthetic))
    if fewest < 4:
        raise ValueError(f"Factors of {fewest} volume(s) have no distribution to compare; give at least 4 in each set.")
    return {
        name: _compare(_values(real, name), _values(synthetic, name), seed) for name in _shared_names(real, synthetic)
    }


def relative_to_spread(value: float, spread: float, mean: float) -> float | None:
    """A value in standard deviations of values with such a mean; None where they vary by rounding only."""
    return float(value / spread) if spread > _CONSTANT * abs(mean) else None


def _shared_names(*sets: Sequence[Mapping[str, float]]) -> list[str]:
    expected = list(sets[0][0])
    for which, factors in zip(("real", "synthetic"), sets, strict=True):
        for index, item in enumerate(factors):
            differing = set(expected) ^ set(item)
            if differing:
                raise ValueError(
                    f"{which} volume {index} and the first real one do not share the factors {sorted(differing)}; "
                    "measure the same factors on all volumes."
                )
    return expected


def _values(factors: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    values = np.array([item[name] for item in factors], dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(
            f"The factor {name} is not finite in volume {int(np.argmin(np.isfinite(values)))}; leave it out."
        )
    return values


def _compare(real: np.ndarray, synthetic: np.ndarray, seed: int) -> FactorDistance:
    distance = _wasserstein()
    halves = _half_distances(real, seed)
    found = jackknife_interval(distance, real, synthetic, seed=seed)
    return FactorDistance(
        wasserstein=replace(found, low=max(0.0, found.low)),
        wasserstein_in_sd=_ratio(distance, real, synthetic, seed),
        spread_ratio=_ratio(lambda _, synthetic: synthetic.std(ddof=1), real, synthetic, seed),
        real_mean=float(real.mean()),
        synthetic_mean=float(synthetic.mean()),
        real_sd=float(real.std(ddof=1)),
        synthetic_sd=float(synthetic.std(ddof=1)),
        floor=float(halves.mean()),
        floor_high=float(np.quantile(halves, 0.95)),
    )


def _half_distances(values: np.ndarray, seed: int) -> np.ndarray:
    """Distances between random halves of a set, for several random splits."""
    generator = np.random.default_rng(seed)
    distance = _wasserstein()
    shuffled = (generator.permutation(values) for _ in range(_SPLITS))
    half = len(values) // 2
    return np.array([distance(order[:half], order[half : 2 * half]) for order in shuffled])


def _ratio(
    statistic: Callable[[np.ndarray, np.ndarray], float], real: np.ndarray, synthetic: np.ndarray, seed: int
) -> Ratio:
    """A statistic of both sets, 0 or more, over the standard deviation of the real one."""

    def ratio(real: np.ndarray, synthetic: np.ndarray) -> float:
        found = relative_to_spread(statistic(real, synthetic), real.std(ddof=1), real.mean())
        return math.nan if found is None else found

    found = jackknife_interval(ratio, real, synthetic, seed=seed)
    if math.isnan(found.standard_error):
        return Ratio(None if math.isnan(found.estimate) else found.estimate, None, None, None)
    return Ratio(found.estimate, max(0.0, found.low), found.high, found.standard_error)


def _wasserstein() -> Any:
    try:
        from scipy.stats import wasserstein_distance
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Wasserstein distances need scipy: pip install voxdiff[metrics].") from error
    return wasserstein_distance
