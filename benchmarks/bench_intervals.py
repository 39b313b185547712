"""How often the intervals of `voxdiff.metrics` hold what they should: nominal 95 % against measured, on Gaussians.

    python benchmarks/bench_intervals.py [--repetitions 200] [--large-repetitions 80]

Real features are N(0, I); synthetic ones are the same ("equal"), or N(0.3, 1.1² I) ("shifted"). An interval should hold
the expected value of its statistic at this N, which is the mean over the repetitions (for KID of equal sets: 0). `width`
is the root mean square of the standard errors over the standard deviation of the estimates: above 1 is too careful.
For comparison, not offered by the package: percentiles of a bootstrap of the rows for FID and KID (60 resamples), the
mean of ten disjoint blocks for KID, and a bootstrap of precision's indicators with the real manifold taken as known.
Writes interval_coverage.json below --out.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from record import RESULTS, environment, markdown_table, write_result
from scipy.stats import t, wasserstein_distance

from voxdiff.metrics.fidelity import frechet_distance, kernel_inception_distance
from voxdiff.metrics.intervals import (
    Interval,
    jackknife_interval,
    manifold_intervals,
    mean_interval,
    pairwise_mean_interval,
)
from voxdiff.metrics.manifold import precision_recall
from voxdiff.metrics.mmd_intervals import mmd_interval

BOOTSTRAP = 60
SETTINGS = {"equal": (0.0, 1.0), "shifted": (0.3, 1.1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200, help="at N = 50")
    parser.add_argument("--large-repetitions", type=int, default=80, help="at N = 200")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    started, clock = environment(), time.perf_counter()
    rows = []
    for number, repetitions in ((50, args.repetitions), (200, args.large_repetitions)):
        for features in (16, 64):
            for name in SETTINGS:
                rows += measure(number, features, name, repetitions, args.seed)
    result = {"environment": started, "seconds": round(time.perf_counter() - clock), "rows": rows}
    write_result("interval_coverage", result, args.out)
    print(as_table(rows))


def measure(number: int, features: int, setting: str, repetitions: int, seed: int) -> list[dict]:
    """Coverage of each interval for sets of one size."""
    generator = np.random.default_rng(seed)
    shift, scale = SETTINGS[setting]
    found: dict[str, list[Interval]] = defaultdict(list)
    for repetition in range(repetitions):
        real = generator.normal(size=(number, features))
        synthetic = generator.normal(size=(number, features)) * scale + shift
        for name, interval in intervals_of(real, synthetic, repetition):
            found[name].append(interval)
    return [
        {"N": number, "features": features, "sets": setting, "interval": name, **summary(name, setting, intervals)}
        for name, intervals in found.items()
    ]


def as_table(rows: list[dict]) -> str:
    """One line for each interval, with "coverage (width)" for each kind of sets."""
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        column = f"N {row['N']}, d {row['features']}, {row['sets']}"
        cells[row["interval"]][column] = f"{row['coverage']:.3f} ({row['width']:.2f})"
    columns = list(dict.fromkeys(column for line in cells.values() for column in line))
    lines = [[name, *(line.get(column, "") for column in columns)] for name, line in cells.items()]
    return markdown_table(["coverage (width)", *columns], lines)


def summary(name: str, setting: str, intervals: list[Interval]) -> dict:
    estimates = np.array([interval.estimate for interval in intervals])
    target = 0.0 if name.startswith("KID") and setting == "equal" else estimates.mean()
    covered = np.mean([interval.low <= target <= interval.high for interval in intervals])
    error = np.sqrt(np.mean([interval.standard_error**2 for interval in intervals]))
    return {
        "repetitions": len(intervals),
        "expected": float(f"{target:.3g}"),
        "coverage": round(float(covered), 3),
        "width": round(float(error / estimates.std()), 2),
        "spread": float(f"{estimates.std():.2g}"),
    }


def intervals_of(real: np.ndarray, synthetic: np.ndarray, seed: int) -> Iterator[tuple[str, Interval]]:
    yield "FID, jackknife", jackknife_interval(frechet_distance, real, synthetic, seed=seed)
    yield "KID, closed form", mmd_interval(real, synthetic)
    yield "KID, jackknife", jackknife_interval(kernel_inception_distance, real, synthetic, seed=seed)
    for name, interval in manifold_intervals(real, synthetic, seed=seed).items():
        yield f"{name}, jackknife", interval
    factor = real[:, 0], synthetic[:, 0]
    yield "Wasserstein-1 of a factor, jackknife", jackknife_interval(wasserstein_distance, *factor, seed=seed)
    yield "mean, bootstrap", mean_interval(real[:, 0], num_resamples=500, seed=seed)
    yield "mean of exponentials, bootstrap", mean_interval(np.exp(-real[:, 0]), num_resamples=500, seed=seed)
    pairs = np.array(list(combinations(range(len(real)), 2)))
    some = np.random.default_rng(seed).choice(pairs, 4 * len(real), replace=False)
    for name, chosen in (("all", pairs), ("some", some)):
        similarity = np.exp(-np.sum((real[chosen[:, 0]] - real[chosen[:, 1]]) ** 2, axis=1) / (2 * real.shape[1]))
        yield f"mean over {name} pairs, jackknife", pairwise_mean_interval(similarity, chosen)
    if len(real) <= 50:
        yield "(FID, row bootstrap)", row_bootstrap(frechet_distance, real, synthetic, seed)
        yield "(KID, row bootstrap)", row_bootstrap(kernel_inception_distance, real, synthetic, seed)
    yield "(KID, blocks)", block_mean(real, synthetic, seed)
    inside = precision_recall(real, synthetic).synthetic_inside
    yield "(precision, bootstrap of indicators)", mean_interval(inside, num_resamples=500, seed=seed)


def row_bootstrap(statistic: Callable, real: np.ndarray, synthetic: np.ndarray, seed: int) -> Interval:
    generator = np.random.default_rng(seed)
    draws = [
        statistic(*(rows[generator.integers(len(rows), size=len(rows))] for rows in (real, synthetic)))
        for _ in range(BOOTSTRAP)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(statistic(real, synthetic), float(low), float(high), float(np.std(draws)))


def block_mean(real: np.ndarray, synthetic: np.ndarray, seed: int, blocks: int = 10) -> Interval:
    order = np.random.default_rng(seed).permutation(len(real))
    values = [kernel_inception_distance(real[rows], synthetic[rows]) for rows in np.array_split(order, blocks)]
    error = np.std(values, ddof=1) / np.sqrt(blocks)
    reach = t.ppf(0.975, blocks - 1) * error
    return Interval(float(np.mean(values)), np.mean(values) - reach, np.mean(values) + reach, float(error))


if __name__ == "__main__":
    main()
