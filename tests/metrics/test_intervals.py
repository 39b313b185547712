"""Intervals: exact special cases, groups, and (slow) the measured coverage."""

from itertools import combinations

import numpy as np
import pytest

from voxdiff.metrics.fidelity import frechet_distance
from voxdiff.metrics.intervals import (
    jackknife_interval,
    manifold_intervals,
    mean_interval,
    pairwise_mean_interval,
)
from voxdiff.metrics.manifold import density_coverage, precision_recall


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def mean_difference(real, synthetic):
    return float(real.mean() - synthetic.mean())


def test_jackknife_of_single_rows_is_the_standard_error(generator):
    real, synthetic = generator.normal(size=30), generator.normal(size=25) * 3
    interval = jackknife_interval(mean_difference, real, synthetic, num_blocks=30)
    expected = np.sqrt(real.var(ddof=1) / 30 + synthetic.var(ddof=1) / 25)
    assert interval.standard_error == pytest.approx(expected, rel=1e-10)
    assert interval.estimate == pytest.approx(mean_difference(real, synthetic))
    # 2.0639 is the 97.5th percentile of Student's distribution with 24 degrees of freedom.
    assert interval.high - interval.estimate == pytest.approx(2.0639 * expected, rel=1e-4)


def test_jackknife_brackets_and_shrinks(generator):
    real, synthetic = generator.normal(size=(2, 400, 4))
    few, many = (jackknife_interval(frechet_distance, real[:n], synthetic[:n] + 1) for n in (40, 400))
    for interval, rows in ((few, 40), (many, 400)):
        assert interval.low < interval.estimate < interval.high
        assert interval.estimate == pytest.approx(frechet_distance(real[:rows], synthetic[:rows] + 1))
    assert many.high - many.low < 0.6 * (few.high - few.low)


def test_jackknife_follows_the_seed(generator):
    sets = generator.normal(size=(2, 50, 3))
    errors = [jackknife_interval(frechet_distance, *sets, seed=seed).standard_error for seed in (0, 0, 1)]
    assert errors[0] == errors[1] != errors[2]


def test_groups_stay_together(generator):
    real, synthetic = generator.normal(size=(2, 12))
    single = jackknife_interval(mean_difference, real, synthetic)
    volumes = np.repeat(np.arange(12), 5)
    slices = [np.repeat(values, 5) for values in (real, synthetic)]
    grouped = jackknife_interval(mean_difference, *slices, real_groups=volumes, synthetic_groups=volumes * 7)
    assert grouped.standard_error == pytest.approx(single.standard_error)
    assert jackknife_interval(mean_difference, *slices).standard_error < 0.7 * single.standard_error


def test_levels_widen_the_interval(generator):
    sets = generator.normal(size=(2, 30))
    widths = [
        interval.high - interval.low
        for interval in (jackknife_interval(mean_difference, *sets, level=level) for level in (0.5, 0.95, 0.99))
    ]
    assert widths == sorted(widths) and widths[0] < widths[2]


def test_manifold_intervals_hold_the_shares(generator):
    real, synthetic = generator.normal(size=(60, 3)), generator.normal(size=(50, 3)) + 0.7
    intervals = manifold_intervals(real, synthetic)
    shares, full = precision_recall(real, synthetic), density_coverage(real, synthetic)
    expected = {
        "precision": shares.precision,
        "recall": shares.recall,
        "density": full.density,
        "coverage": full.coverage,
    }
    assert {name: interval.estimate for name, interval in intervals.items()} == pytest.approx(expected)
    for interval in intervals.values():
        assert interval.low < interval.estimate < interval.high
    direct = jackknife_interval(lambda r, s: precision_recall(r, s).recall, real, synthetic)
    assert intervals["recall"].standard_error == pytest.approx(direct.standard_error)


def test_manifold_intervals_take_groups(generator):
    real, synthetic = (np.repeat(rows, 4, axis=0) for rows in generator.normal(size=(2, 20, 3)))
    volumes = np.repeat(np.arange(20), 4)
    grouped = manifold_intervals(real, synthetic, k_precision=7, real_groups=volumes, synthetic_groups=volumes)
    single = manifold_intervals(real, synthetic, k_precision=7)
    # k = 7 reaches past the three copies of each row, so that volumes matter.
    assert grouped["precision"].standard_error != single["precision"].standard_error


def test_mean_interval(generator):
    values = generator.normal(size=200)
    interval = mean_interval(values, num_resamples=4000)
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.standard_error == pytest.approx(values.std() / np.sqrt(200), rel=0.05)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * interval.standard_error, rel=0.05)
    assert mean_interval(values, num_resamples=4000) == interval


def test_mean_interval_resamples_groups(generator):
    values = generator.normal(size=30)
    whole = mean_interval(values)
    repeated = mean_interval(np.tile(values, 4), groups=np.tile(np.arange(30), 4))
    assert repeated.standard_error == pytest.approx(whole.standard_error)
    uneven = np.repeat([0, 1, 2, 3], [1, 1, 1, 9])
    assert mean_interval(uneven == 3, groups=uneven).estimate == 0.75


def test_pairs_without_shared_items_are_independent(generator):
    values = generator.normal(size=50)
    interval = pairwise_mean_interval(values, np.arange(100).reshape(50, 2))
    assert interval.standard_error == pytest.approx(values.std() / np.sqrt(50), rel=0.05)


def test_all_pairs_know_no_more_than_their_items(generator):
    items = generator.normal(size=40)
    pairs = np.array(list(combinations(range(40), 2)))
    interval = pairwise_mean_interval(items[pairs].mean(axis=1), pairs)
    assert interval.estimate == pytest.approx(items.mean())
    assert interval.standard_error == pytest.approx(items.std(ddof=1) / np.sqrt(40), rel=0.02)


def test_order_within_pairs_is_irrelevant(generator):
    pairs = np.array(list(combinations(range(10), 2)))
    values = generator.normal(size=45)
    assert pairwise_mean_interval(values, pairs) == pairwise_mean_interval(values, 5 * pairs[:, ::-1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jackknife_interval(mean_difference, np.zeros(2), np.zeros(9)), "at least 3"),
        (lambda: jackknife_interval(mean_difference, np.zeros(9), np.zeros(9), num_blocks=2), "at least 3"),
        (lambda: jackknife_interval(mean_difference, np.zeros(9), np.zeros(9), real_groups=[0, 1]), "one a row"),
        (lambda: jackknife_interval(mean_difference, np.zeros(9), np.zeros(9), level=95), "0.95"),
        (lambda: mean_interval(np.zeros(5), level=95), "0.95"),
        (lambda: mean_interval(np.zeros(0)), "at least 2"),
        (lambda: mean_interval(np.zeros(4), groups=[1, 1, 1, 1]), "at least 2"),
        (lambda: mean_interval(np.array([1, np.nan])), "finite"),
        (lambda: pairwise_mean_interval(np.zeros(3), np.array([[0, 1], [0, 2], [0, 3]])), "every pair"),
        (lambda: pairwise_mean_interval(np.zeros(3), np.array([[0, 1], [2, 3], [4, 4]])), "different items"),
        (lambda: pairwise_mean_interval(np.zeros(3), np.zeros((2, 2))), "do not match"),
    ],
)
def test_undefined_intervals_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_intervals_cover_the_expected_value(generator):
    """Of 200 repetitions at a nominal 95 %; the standard error of a share near 0.95 is 0.015."""
    found = {"fid": [], "mean": [], "pairs": []}
    pairs = np.array(list(combinations(range(30), 2)))
    for _ in range(200):
        real, synthetic = generator.normal(size=(30, 4)), generator.normal(size=(30, 4)) * 1.5 + 1
        found["fid"].append(jackknife_interval(frechet_distance, real, synthetic, num_blocks=10))
        values = generator.exponential(size=30)
        found["mean"].append(mean_interval(values, num_resamples=500))
        found["pairs"].append(pairwise_mean_interval((values[pairs] ** 2).sum(axis=1), pairs))
    targets = {"fid": np.mean([interval.estimate for interval in found["fid"]]), "mean": 1, "pairs": 4}
    covered = {
        name: np.mean([interval.low <= targets[name] <= interval.high for interval in intervals])
        for name, intervals in found.items()
    }
    assert 0.90 <= covered["fid"] <= 1
    assert 0.85 <= covered["mean"] <= 0.99
    assert 0.75 <= covered["pairs"] <= 0.99  # squares of exponentials have long tails
