"""The closed form of the MMD interval against the same by leaving units out, one and two at a time."""

from itertools import combinations, product

import numpy as np
import pytest

from voxdiff.metrics.fidelity import gaussian_kernel, gaussian_mmd, kernel_inception_distance
from voxdiff.metrics.mmd_intervals import mmd_interval


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def without(rows, *left_out):
    return np.delete(rows, left_out, axis=0)


def variance_by_deletion(real, synthetic):
    """Jackknife variance and the part of it that is due to pairs of rows, from values on subsets alone."""
    kid = kernel_inception_distance
    full, jackknife, coupled = kid(real, synthetic), 0.0, 0.0
    alone = {}
    for which, (rows, of) in enumerate(
        ((real, lambda r: kid(r, synthetic)), (synthetic, lambda s: kid(real, s))),
    ):
        n = len(rows)
        one = alone[which] = np.array([of(without(rows, i)) for i in range(n)])
        jackknife += (n - 1) * one.var()
        # The other set cancels from differences that leave out rows of one set only, up to its own means.
        pairs = [
            self_mean(without(rows, i, j)) - self_mean(without(rows, i)) - self_mean(without(rows, j))
            for i, j in combinations(range(n), 2)
        ]
        coupled += (1 - 2 / n) ** 2 * (n - 3) / (n - 1) * len(pairs) * np.var(pairs)
    n, m = len(real), len(synthetic)
    across = [
        kid(without(real, i), without(synthetic, j)) - alone[0][i] - alone[1][j] + full
        for i, j in product(range(n), range(m))
    ]
    return jackknife, coupled + (1 - 1 / n) * (1 - 1 / m) * n * m * np.var(across)


def self_mean(rows):
    values = (rows @ rows.T / rows.shape[1] + 1) ** 3
    return (values.sum() - np.trace(values)) / (len(rows) * (len(rows) - 1))


@pytest.mark.parametrize("number", [4, 8])
def test_closed_form_is_what_deletion_gives(generator, number):
    real, synthetic = generator.normal(size=(number, 3)), generator.normal(size=(6, 3)) + 1
    jackknife, coupled = variance_by_deletion(real, synthetic)
    interval = mmd_interval(real, synthetic)
    assert 0 < coupled < 0.5 * jackknife
    assert interval.standard_error**2 == pytest.approx(jackknife - coupled, rel=1e-9)
    assert interval.estimate == pytest.approx(kernel_inception_distance(real, synthetic))
    # The 97.5th percentile of Student's distribution with 3 and 5 degrees of freedom.
    percentile = {4: 3.1824, 8: 2.5706}[number]
    assert interval.high - interval.estimate == pytest.approx(percentile * interval.standard_error, rel=1e-4)


def test_another_kernel(generator):
    real, synthetic = generator.normal(size=(20, 3)), generator.normal(size=(15, 3)) + 1
    interval = mmd_interval(real, synthetic, kernel=gaussian_kernel(2.0))
    assert interval.estimate == pytest.approx(gaussian_mmd(real, synthetic, width=2.0))


def test_brackets_and_shrinks(generator):
    real, synthetic = generator.normal(size=(2, 400, 4))
    few, many = (mmd_interval(real[:n], synthetic[:n] + 1) for n in (40, 400))
    assert few.low < few.estimate < few.high
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_groups_of_slices_are_no_more_than_their_volumes(generator):
    volumes = np.repeat(np.arange(30), 6)
    real, synthetic = (generator.normal(size=(30, 4)) + shift for shift in (0, 1))
    slices = [np.repeat(rows, 6, axis=0) + 0.1 * generator.normal(size=(180, 4)) for rows in (real, synthetic)]
    single = mmd_interval(real, synthetic)
    grouped = mmd_interval(*slices, real_groups=volumes, synthetic_groups=volumes)
    assert grouped.estimate == pytest.approx(kernel_inception_distance(*slices))
    assert grouped.standard_error == pytest.approx(single.standard_error, rel=0.15)
    assert mmd_interval(*slices).standard_error < 0.6 * grouped.standard_error


def test_order_of_grouped_rows_is_irrelevant(generator):
    real, synthetic = generator.normal(size=(2, 24, 3))
    groups, order = np.arange(24) // 3, generator.permutation(24)
    kept = mmd_interval(real, synthetic, real_groups=groups, synthetic_groups=groups)
    moved = mmd_interval(real[order], synthetic, real_groups=groups[order], synthetic_groups=groups)
    assert moved.standard_error == pytest.approx(kept.standard_error)


def test_too_few_are_refused(generator):
    rows = generator.normal(size=(12, 3))
    with pytest.raises(ValueError, match="at least 4"):
        mmd_interval(rows, rows[:3])
    with pytest.raises(ValueError, match="at least 4"):
        mmd_interval(rows, rows, real_groups=np.arange(12) // 4)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_covers_the_known_value(generator, shift):
    """Of 400 repetitions at a nominal 95 %; the standard error of a share near 0.95 is 0.011."""
    intervals = []
    for _ in range(400):
        real, synthetic = generator.normal(size=(2, 60, 8))
        intervals.append(mmd_interval(real, synthetic + shift))
    target = np.mean([interval.estimate for interval in intervals]) if shift else 0
    assert 0.91 <= np.mean([interval.low <= target <= interval.high for interval in intervals]) <= 0.999
