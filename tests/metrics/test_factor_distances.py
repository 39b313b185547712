"""Distances between factor distributions: known shifts and spreads, the floor, and factors that do not match."""

import numpy as np
import pytest

from voxdiff.metrics.factor_distances import factor_distances, relative_to_spread


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def rows(**factors):
    return [dict(zip(factors, values, strict=True)) for values in zip(*factors.values(), strict=True)]


def test_shift_and_scale_are_measured(generator):
    volumes = generator.normal(1200, 100, size=60)
    found = factor_distances(rows(brain=volumes, ventricle=volumes), rows(brain=volumes + 50, ventricle=2 * volumes))
    assert list(found) == ["brain", "ventricle"]
    brain, ventricle = found["brain"], found["ventricle"]
    assert brain.wasserstein.estimate == pytest.approx(50)
    assert brain.wasserstein_in_sd.estimate == pytest.approx(50 / volumes.std(ddof=1))
    assert brain.spread_ratio.estimate == pytest.approx(1)
    assert ventricle.spread_ratio.estimate == pytest.approx(2)
    assert ventricle.wasserstein.estimate == pytest.approx(volumes.mean())
    assert (ventricle.real_mean, ventricle.synthetic_mean) == pytest.approx((volumes.mean(), 2 * volumes.mean()))
    assert (ventricle.real_sd, ventricle.synthetic_sd) == pytest.approx((volumes.std(ddof=1), 2 * volumes.std(ddof=1)))


def test_sets_of_different_sizes():
    found = factor_distances(rows(x=[0, 0, 4, 4]), rows(x=[1, 1, 1, 1, 5, 5, 5, 5]))["x"]
    assert found.wasserstein.estimate == pytest.approx(1)


def test_the_floor_is_what_equal_distributions_give(generator):
    equal, apart = generator.normal(size=(2, 200))
    found = factor_distances(rows(x=equal), rows(x=apart))["x"]
    assert found.floor / 2.5 < found.wasserstein.estimate < found.floor_high
    assert 0 < found.floor < found.floor_high < 0.5
    moved = factor_distances(rows(x=equal), rows(x=apart + 1))["x"]
    assert moved.wasserstein.low > found.floor_high == moved.floor_high


def test_intervals_hold_the_truth(generator):
    real, synthetic = generator.normal(size=150), 1 + 1.5 * generator.normal(size=150)
    found = factor_distances(rows(x=real), rows(x=synthetic))["x"]
    # The distance is the mean of |1 + 0.5 z| over a standard normal z.
    for interval, truth in ((found.wasserstein, 1.008), (found.wasserstein_in_sd, 1.008), (found.spread_ratio, 1.5)):
        assert interval.low < truth < interval.high
        assert interval.high - interval.low < truth


def test_constant_factors_have_no_relative_values():
    found = factor_distances(rows(components=[1] * 5), rows(components=[1, 1, 2, 2, 1]))["components"]
    assert found.wasserstein.estimate == pytest.approx(0.4)
    for ratio in (found.spread_ratio, found.wasserstein_in_sd):
        assert (ratio.estimate, ratio.low, ratio.high, ratio.standard_error) == (None,) * 4


@pytest.mark.parametrize("level", [14.0, -0.1, 1e6])
def test_a_spread_of_rounding_is_none(generator, level):
    real = level * (1 + 1e-15 * generator.normal(size=30))
    found = factor_distances(rows(x=real), rows(x=level + generator.normal(size=30)))["x"]
    assert 0 < found.real_sd < 1e-8
    assert found.spread_ratio.estimate is None and found.wasserstein_in_sd.estimate is None
    assert found.wasserstein.low > 0


def test_a_narrow_spread_is_still_measured(generator):
    values = 1000 + 0.01 * generator.normal(size=30)
    found = factor_distances(rows(x=values), rows(x=1000 + 3 * (values - 1000)))["x"]
    assert found.spread_ratio.low < 3 == pytest.approx(found.spread_ratio.estimate)
    assert relative_to_spread(2.0, 4.0, 0.0) == 0.5 and relative_to_spread(2.0, 0.0, 0.0) is None


def test_a_spread_that_hangs_on_one_volume_gives_a_ratio_without_interval(generator):
    found = factor_distances(rows(x=[1] * 59 + [2]), rows(x=generator.normal(1, 1, size=60)))["x"]
    assert found.spread_ratio.estimate > 1 and found.wasserstein_in_sd.estimate > 1
    assert found.spread_ratio.low is found.spread_ratio.high is found.wasserstein_in_sd.low is None
    assert found.wasserstein.low < found.wasserstein.estimate < found.wasserstein.high


def test_intervals_end_at_zero(generator):
    equal = generator.normal(size=12)
    alike = factor_distances(rows(x=equal), rows(x=equal))["x"]
    assert alike.wasserstein.low == alike.wasserstein_in_sd.low == 0 < alike.wasserstein.high
    wild = factor_distances(rows(x=equal), rows(x=[0] * 11 + [5]))["x"]
    assert wild.spread_ratio.low == 0 < wild.spread_ratio.estimate < wild.spread_ratio.high


def test_seed_decides(generator):
    sets = [rows(x=generator.normal(size=40)) for _ in range(2)]
    assert factor_distances(*sets, seed=1) == factor_distances(*sets, seed=1) != factor_distances(*sets, seed=2)


@pytest.mark.parametrize(
    ("synthetic", "message"),
    [
        (rows(x=[1] * 5), r"synthetic volume 0 .*\['y'\]"),
        (rows(x=[1] * 5, y=[2] * 5, z=[3] * 5), r"synthetic volume 0 .*\['z'\]"),
        ([*rows(x=[1] * 4, y=[2] * 4), {"x": 1}], "synthetic volume 4"),
        (rows(x=[1] * 5, y=[1, 2, 3, float("nan"), 4]), "y is not finite in volume 3"),
        (rows(x=[1] * 3, y=[2] * 3), "at least 4"),
    ],
)
def test_factors_that_do_not_match_are_refused(synthetic, message):
    with pytest.raises(ValueError, match=message):
        factor_distances(rows(x=[1, 2, 3, 4, 5], y=[1, 2, 3, 4, 5]), synthetic)
