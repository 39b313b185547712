"""Toy manifolds with known answers, and a second implementation on random points."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from voxdiff.metrics import manifold
from voxdiff.metrics.manifold import (
    density_coverage,
    manifold_shares,
    neighbour_radii,
    pairwise_distances,
    precision_recall,
    rarity_scores,
)


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def line(*positions):
    return np.array(positions, dtype=np.float64)[:, None]


def cluster(generator, number, centre):
    return generator.normal(size=(number, 4)) * 0.1 + centre


def test_separate_clusters_share_nothing(generator):
    real, synthetic = cluster(generator, 20, 0), cluster(generator, 20, 10)
    shares, full = precision_recall(real, synthetic), density_coverage(real, synthetic)
    assert (shares.precision, shares.recall, full.density, full.coverage) == (0, 0, 0, 0)
    assert rarity_scores(real, synthetic).undefined_share == 1


def test_half_of_the_modes_dropped(generator):
    mode = cluster(generator, 20, 0)
    real = np.concatenate([mode, cluster(generator, 20, 10)])
    shares, full = precision_recall(real, mode), density_coverage(real, mode)
    assert (shares.precision, shares.recall) == (1, 0.5)
    assert full.coverage == 0.5
    assert shares.real_inside.tolist() == full.real_covered.tolist() == [True] * 20 + [False] * 20


def test_invented_mode(generator):
    real = cluster(generator, 20, 0)
    shares = precision_recall(real, np.concatenate([real, cluster(generator, 20, 10)]))
    assert (shares.precision, shares.recall) == (0.5, 1)


def test_copies(generator):
    real = generator.normal(size=(30, 4))
    shares, full = precision_recall(real, real), density_coverage(real, real)
    assert (shares.precision, shares.recall, full.coverage) == (1, 1, 1)
    # Each ball holds its centre and its k neighbours.
    assert full.density == pytest.approx(6 / 5)


def test_density_exceeds_one_where_points_crowd():
    full = density_coverage(line(0, 1, 2, 3, 4, 5), line(2.5, 2.5, 2.5), k=2)
    # Balls of radius 1 around 1 to 4 (2 at the ends): 2 and 3 hold the point, 0 with radius 2 and 5 do not.
    assert full.density == pytest.approx(2 / 2)
    assert full.real_covered.tolist() == [False, False, True, True, False, False]
    crowded = density_coverage(line(0, 1, 2, 3, 4, 5), line(2, 2, 2), k=2)
    assert crowded.synthetic_density == pytest.approx([4 / 2] * 3)


def test_radii_leave_out_the_point_itself():
    assert neighbour_radii(line(0, 1, 3, 7), 1).tolist() == [1, 1, 2, 4]
    assert neighbour_radii(line(0, 1, 3, 7), 3).tolist() == [7, 6, 4, 7]
    assert neighbour_radii(line(5, 5, 5, 8), 2).tolist() == [0, 0, 0, 3]


def test_balls_are_closed():
    real = line(0, 1, 2, 3, 10)
    inside = precision_recall(real, line(4, 5.0001, -0.9999, 40, 60), k=1).synthetic_inside
    # The ball around 3 has radius 1, the one around 10 radius 7, those around 0 to 2 radius 1.
    assert inside.tolist() == [True, True, True, False, False]
    assert precision_recall(real, line(17, 17.0001, 40, 60), k=1).synthetic_inside.tolist() == [
        True,
        False,
        False,
        False,
    ]


def test_copies_count_where_radii_are_zero():
    real, synthetic = line(*[0.1] * 6, 9), line(0.1, 0.1, 0.1, 0.1, 0.1 + 1e-12)
    assert precision_recall(real[:6], synthetic).precision == 0.8


def test_distances_far_from_the_origin_are_exact():
    step = 2.0**-20  # exact in float64 beside 1e6, lost in an expanded square
    real = 1e6 + step * line(0, 1, 2, 3, 4, 5)
    assert neighbour_radii(real, 1).tolist() == [step] * 6
    shares = precision_recall(real, real + step / 2, k=1)
    assert shares.precision == 1 and precision_recall(real, real + 7 * step, k=1).precision == 0


@pytest.mark.parametrize("k", [1, 4])
def test_second_implementation(generator, k):
    real, synthetic = generator.normal(size=(40, 3)), generator.normal(size=(25, 3)) * 0.8 + 0.5
    radii = NearestNeighbors(n_neighbors=k).fit(real).kneighbors()[0][:, -1]
    balls = np.linalg.norm(real[:, None] - synthetic, axis=2) <= radii[:, None]
    assert neighbour_radii(real, k) == pytest.approx(radii)
    assert precision_recall(real, synthetic, k).precision == balls.any(0).mean()
    assert precision_recall(synthetic, real, k).recall == balls.any(0).mean()
    full = density_coverage(real, synthetic, k)
    assert full.density == pytest.approx(balls.sum() / (k * 25))
    assert full.coverage == balls.any(1).mean()
    expected = np.where(balls.any(0), np.where(balls, radii[:, None], np.inf).min(0), np.nan)
    scores = rarity_scores(real, synthetic, k)
    assert scores.values == pytest.approx(expected, nan_ok=True)
    assert scores.undefined_share == np.isnan(expected).mean()


def test_rarity_by_hand():
    real = line(0, 1, 2, 3, 13)
    # Radii to the nearest other point: 1, 1, 1, 1, 10.
    scores = rarity_scores(real, line(2.5, 13, 3.5, 30), k=1)
    assert scores.values[:3].tolist() == [1, 10, 1] and np.isnan(scores.values[3])
    assert scores.undefined_share == 0.25


def test_shares_from_distances_are_the_same(generator):
    real, synthetic = generator.normal(size=(30, 3)), generator.normal(size=(20, 3)) + 0.5
    shares, full = precision_recall(real, synthetic, 3), density_coverage(real, synthetic, 5)
    expected = (shares.precision, shares.recall, full.density, full.coverage)
    assert manifold_shares(*pairwise_distances(real, synthetic), k_precision=3, k_density=5) == pytest.approx(expected)


def test_pointwise_values_average_to_the_shares(generator):
    real, synthetic = generator.normal(size=(30, 3)), generator.normal(size=(20, 3)) + 0.5
    shares, full = precision_recall(real, synthetic), density_coverage(real, synthetic)
    assert shares.synthetic_inside.shape == full.synthetic_density.shape == (20,)
    assert shares.real_inside.shape == full.real_covered.shape == (30,)
    averages = (shares.synthetic_inside.mean(), shares.real_inside.mean(), full.synthetic_density.mean())
    assert averages == pytest.approx((shares.precision, shares.recall, full.density))


def test_chunks_change_nothing(generator, monkeypatch):
    real, synthetic = generator.normal(size=(30, 3)), generator.normal(size=(20, 3)) + 0.5
    expected = [f(real, synthetic) for f in (precision_recall, density_coverage, rarity_scores)]
    monkeypatch.setattr(manifold, "_CHUNK_ROWS", 7)
    found = [f(real, synthetic) for f in (precision_recall, density_coverage, rarity_scores)]
    assert (found[0].precision, found[0].recall) == (expected[0].precision, expected[0].recall)
    assert (found[1].density, found[1].coverage) == (expected[1].density, expected[1].coverage)
    assert np.array_equal(found[2].values, expected[2].values, equal_nan=True)


@pytest.mark.parametrize("metric", [precision_recall, density_coverage, rarity_scores])
@pytest.mark.parametrize("k", [0, 5])
def test_too_few_neighbours_are_refused(generator, metric, k):
    with pytest.raises(ValueError, match="neighbour"):
        metric(*generator.normal(size=(2, 5, 3)), k)
