"""Memorisation test, AMD and nearest neighbours on distances and features with known answers."""

import sys

import numpy as np
import pytest
from scipy import stats

from voxdiff.metrics.privacy import (
    average_minimum_cosine_distance,
    copy_threshold,
    memorisation_test,
    nearest_neighbours,
)


def log_normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return 0.3 * np.exp(0.08 * random.standard_normal(shape))


def test_p_values_are_uniform_when_the_sets_are_exchangeable():
    random = np.random.default_rng(0)
    p_values = [memorisation_test(log_normal(random, 40), log_normal(random, 30)).p_value for _ in range(300)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_a_set_drawn_towards_training_has_a_small_p_value_and_a_hand_counted_auc():
    result = memorisation_test([1.0, 2.0, 3.0], [2.0, 2.5, 4.0, 5.0, 6.0])
    # Of 15 pairs the synthetic one is nearer in 5 + 4 + 3, with one tie.
    assert result.auc == pytest.approx(12.5 / 15)
    random = np.random.default_rng(1)
    towards, away = 0.9 * log_normal(random, 60), 1.1 * log_normal(random, 60)
    assert memorisation_test(towards, log_normal(random, 60)).p_value < 1e-6
    assert memorisation_test(away, log_normal(random, 60)).p_value > 0.99


def test_copies_are_listed_nearest_first_and_false_alarms_are_stated():
    random = np.random.default_rng(2)
    synthetic = log_normal(random, 50)
    synthetic[[7, 3]] = 0.01, 0.1
    result = memorisation_test(synthetic, log_normal(random, 100))
    assert result.copies == (7, 3)
    assert result.expected_false_alarms == pytest.approx(0.05)
    assert (result.num_synthetic, result.num_heldout) == (50, 100)
    assert result.warnings == () and result.heldout_below == ()


@pytest.mark.parametrize("number", [20, 100])
def test_the_threshold_keeps_its_false_alarm_rate(number):
    random = np.random.default_rng(3)
    rates = []
    for _ in range(500):
        threshold = copy_threshold(log_normal(random, number), false_alarm_rate=0.01)
        rates.append(stats.norm.cdf(np.log(threshold / 0.3) / 0.08))
    assert np.mean(rates) == pytest.approx(0.01, abs=0.003)


def test_training_volumes_among_the_heldout_move_the_threshold_little_and_are_told():
    heldout = log_normal(np.random.default_rng(4), 100)
    clean = copy_threshold(heldout)
    heldout[:5] = 0
    result = memorisation_test([0.02], heldout)
    assert result.threshold == pytest.approx(clean, rel=0.1)
    assert result.copies == (0,) and result.heldout_below == (0, 1, 2, 3, 4)
    assert "5 of 100 held-out volumes" in result.warnings[0]


def test_few_heldout_volumes_are_told():
    random = np.random.default_rng(5)
    assert "10 held-out" in memorisation_test([0.3], log_normal(random, 10)).warnings[0]


@pytest.mark.parametrize(
    ("synthetic", "heldout", "settings", "message"),
    [
        ([], [1.0] * 5, {}, "synthetic distances"),
        ([1.0], [1.0] * 4, {}, "at least 5"),
        ([np.nan], [1.0] * 5, {}, "synthetic distances"),
        ([1.0], [-1.0] * 5, {}, "held-out distances"),
        ([1.0], [1.0] * 5, {"false_alarm_rate": 0.0}, "false alarm rate is 0.0"),
    ],
)
def test_bad_distances_are_named(synthetic, heldout, settings, message):
    with pytest.raises(ValueError, match=message):
        memorisation_test(synthetic, heldout, **settings)


def test_missing_scipy_explains_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ModuleNotFoundError, match=r"voxdiff\[metrics\]"):
        copy_threshold([1.0] * 5)


def test_amd_of_copies_is_zero_and_of_directions_at_known_angles_is_known():
    train = np.random.default_rng(6).standard_normal((5, 8))
    assert average_minimum_cosine_distance(-3 * train[[1, 4]], train) == pytest.approx(0, abs=1e-12)
    features = np.array([[1.0, 0.0], [1.0, 1.0]])
    assert average_minimum_cosine_distance(features, np.array([[0.0, 2.0]])) == pytest.approx((1 + 1 - 0.5**0.5) / 2)


def test_amd_refuses_features_without_a_direction():
    with pytest.raises(ValueError, match="all zeros"):
        average_minimum_cosine_distance(np.zeros((1, 3)), np.ones((2, 3)))


def test_nearest_neighbours_of_points_on_a_line():
    train = np.array([[0.0], [10.0], [20.0]])
    distances, nearest = nearest_neighbours(np.array([[9.0], [21.0], [0.0]]), train)
    assert nearest.tolist() == [1, 2, 0]
    assert distances.tolist() == [1.0, 1.0, 0.0]


def test_a_copy_far_from_the_origin_has_distance_zero():
    train = 1e6 + np.random.default_rng(7).standard_normal((4, 16))
    assert nearest_neighbours(train[2:3], train)[0].tolist() == [0.0]


@pytest.mark.parametrize("function", [average_minimum_cosine_distance, nearest_neighbours])
@pytest.mark.parametrize("features", [np.ones((2, 4)), np.ones(3), np.ones((0, 3)), np.full((2, 3), np.inf)])
def test_bad_features_are_named(function, features):
    with pytest.raises(ValueError, match="equal width"):
        function(features, np.ones((2, 3)))
