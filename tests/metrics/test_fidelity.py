"""Closed forms, second implementations and exact special cases of the distances between feature sets."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from voxdiff.metrics import fidelity
from voxdiff.metrics.fidelity import (
    check_count,
    dot_product_mmd,
    frechet_distance,
    gaussian_mmd,
    inception_score,
    kernel_inception_distance,
    median_distance,
    polynomial_mmd,
)

DISTANCES = [frechet_distance, kernel_inception_distance, gaussian_mmd]


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def whitened(generator, number, features):
    """Rows whose mean is exactly 0 and whose covariance is exactly the identity."""
    rows = generator.normal(size=(number, features))
    rows -= rows.mean(0)
    return np.linalg.qr(rows)[0] * np.sqrt(number - 1)


def correlated(generator, number, features):
    return generator.normal(size=(number, features)) @ generator.normal(size=(features, features)) + 0.3


def by_matrix_root(real, synthetic):
    first, second = np.cov(real, rowvar=False), np.cov(synthetic, rowvar=False)
    means = np.sum((real.mean(0) - synthetic.mean(0)) ** 2)
    return means + np.trace(first + second - 2 * sqrtm(first @ second).real)


def test_frechet_distance_of_exact_moments(generator):
    rows = whitened(generator, 40, 6)
    scales, shift = np.array([0.5, 1, 2, 3, 0, 1.5]), np.arange(6.0)
    expected = np.sum(shift**2) + np.sum((1 - scales) ** 2)
    rotation = np.linalg.qr(generator.normal(size=(6, 6)))[0]
    assert frechet_distance(rows @ rotation, (rows * scales + shift) @ rotation) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_agrees_with_the_matrix_root(generator):
    real, synthetic = correlated(generator, 60, 8), correlated(generator, 35, 8)
    assert frechet_distance(real, synthetic) == pytest.approx(by_matrix_root(real, synthetic), rel=1e-9)


def test_frechet_distance_is_exact_with_fewer_rows_than_features(generator):
    real, synthetic = correlated(generator, 20, 5), correlated(generator, 12, 5)
    embedding = np.linalg.qr(generator.normal(size=(50, 5)))[0].T
    expected = by_matrix_root(real, synthetic)
    assert frechet_distance(real @ embedding, synthetic @ embedding) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_converges_to_the_known_one(generator):
    scales = np.array([0.5, 1, 2])
    real, synthetic = generator.normal(size=(20000, 3)), generator.normal(size=(20000, 3)) * scales + 1
    assert frechet_distance(real, synthetic) == pytest.approx(3 + np.sum((1 - scales) ** 2), rel=0.02)


def test_equal_moments_are_at_zero(generator):
    rows = correlated(generator, 30, 4)
    assert frechet_distance(rows, 2 * rows.mean(0) - rows) == pytest.approx(0, abs=1e-10)


class Flatten(torch.nn.Module):
    """Features as they come, of the type that torchmetrics passes on."""

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features

    def forward(self, images):
        return images.flatten(1).double()


def test_torchmetrics_agrees(generator):
    images = generator.integers(0, 255, size=(2, 40, 3, 2, 2)).astype(np.uint8)
    images[1] //= 2
    fid = FrechetInceptionDistance(feature=Flatten(12), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=Flatten(12), subsets=1, subset_size=40)
    for metric in (fid, kid):
        metric.update(torch.from_numpy(images[0]), real=True)
        metric.update(torch.from_numpy(images[1]), real=False)
    real, synthetic = images.reshape(2, 40, 12).astype(np.float64)
    assert frechet_distance(real, synthetic) == pytest.approx(float(fid.compute()), rel=1e-6)
    assert kernel_inception_distance(real, synthetic) == pytest.approx(float(kid.compute()[0]), rel=1e-6)


def test_kid_leaves_out_pairs_with_itself(generator):
    real, synthetic = generator.normal(size=(4, 3)), generator.normal(size=(5, 3))

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    def within(rows):
        pairs = [kernel(rows[i], rows[j]) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        return np.mean(pairs)

    across = np.mean([kernel(x, y) for x in real for y in synthetic])
    assert kernel_inception_distance(real, synthetic) == pytest.approx(within(real) + within(synthetic) - 2 * across)


def known_mean_kernel(a, b):
    """Mean of (x·y / d + 1)³ over x ~ N(a, I) and y ~ N(b, I)."""
    d, ab, aa, bb = len(a), a @ b, a @ a, b @ b
    square = ab**2 + aa + bb + d
    cube = ab**3 + 3 * ab * (aa + bb + d + 2)
    return cube / d**3 + 3 * square / d**2 + 3 * ab / d + 1


@pytest.mark.parametrize("metric", ["kid", "gaussian"])
def test_mmd_of_gaussians_is_unbiased(generator, metric):
    a, b, width = np.zeros(4), np.full(4, 0.5), 2.0
    values = []
    for _ in range(1000):
        real, synthetic = generator.normal(size=(10, 4)), generator.normal(size=(10, 4)) + b
        if metric == "kid":
            values.append(kernel_inception_distance(real, synthetic))
        else:
            values.append(gaussian_mmd(real, synthetic, width=width))
    if metric == "kid":
        expected = known_mean_kernel(a, a) + known_mean_kernel(b, b) - 2 * known_mean_kernel(a, b)
    else:
        distance = (a - b) @ (a - b)
        shrink = (width**2 / (width**2 + 2)) ** 2
        expected = 2 * shrink * (1 - np.exp(-distance / (2 * (width**2 + 2))))
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / np.sqrt(1000))
    assert np.std(values) < 30 * expected  # or the test could not fail


def test_median_width_is_that_of_the_pooled_set():
    real, synthetic = np.array([[0.0], [1.0], [2.0]]), np.array([[10.0], [11.0]])
    median = np.median([1, 2, 10, 11, 1, 9, 10, 8, 9, 1])
    assert median_distance(np.concatenate([real, synthetic])) == pytest.approx(median)
    assert gaussian_mmd(real, synthetic) == pytest.approx(gaussian_mmd(real, synthetic, width=median))


def test_gaussian_mmd_survives_features_far_from_the_origin(generator):
    real, synthetic = generator.normal(size=(2, 20, 3))
    assert gaussian_mmd(real + 1e6, synthetic + 1e6) == pytest.approx(gaussian_mmd(real, synthetic), abs=1e-6)


def test_median_of_many_rows_is_that_of_some(generator, monkeypatch):
    rows = generator.normal(size=(400, 3))
    expected = median_distance(rows)
    monkeypatch.setattr(fidelity, "_MEDIAN_ROWS", 100)
    assert median_distance(rows) != expected
    assert median_distance(rows) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("distance", [kernel_inception_distance, gaussian_mmd])
def test_chunks_change_nothing(generator, monkeypatch, distance):
    real, synthetic = generator.normal(size=(11, 3)), generator.normal(size=(7, 3)) + 1
    expected = distance(real, synthetic)
    monkeypatch.setattr(fidelity, "_CHUNK_ROWS", 4)
    assert distance(real, synthetic) == pytest.approx(expected, rel=1e-12)


def test_linear_kernel_compares_means(generator):
    real, synthetic = whitened(generator, 20, 4), whitened(generator, 20, 4) + 3
    # ‖mean difference‖² − tr Σ_R / N − tr Σ_S / N, over the features
    expected = 9 - 1 / 20 - 1 / 20
    assert polynomial_mmd(real, synthetic, degree=1, offset=0) == pytest.approx(expected)


def test_dot_product_mmd_by_hand():
    real = np.zeros((2, 2, 1, 1))
    synthetic = np.array([[1.0, 0.0], [3.0, 2.0]]).reshape(2, 2, 1, 1)
    assert dot_product_mmd(real, synthetic, unbiased=False) == pytest.approx(1000 * (2**2 + 1**2) / 2)
    assert dot_product_mmd(real, synthetic) == pytest.approx(1000 * (1 * 3 + 0 * 2) / 2)


def test_dot_product_mmd_reads_volumes_one_by_one(generator):
    real, synthetic = generator.random((2, 5, 4, 4, 4), dtype=np.float32)
    streamed = dot_product_mmd(iter(real), (torch.from_numpy(volume) for volume in synthetic))
    flat = [volumes.reshape(5, -1).astype(np.float64) for volumes in (real, synthetic)]
    assert streamed == pytest.approx(1000 * polynomial_mmd(*flat, degree=1, offset=0))


def test_dot_product_mmd_refuses_other_grids(generator):
    volumes = generator.random((3, 4, 4, 4))
    with pytest.raises(ValueError, match="one grid"):
        dot_product_mmd(volumes, volumes[:, :2])
    with pytest.raises(ValueError, match="Volume 1"):
        dot_product_mmd([volumes[0], volumes[1, :2]], volumes)
    with pytest.raises(ValueError, match="undefined for 1 synthetic"):
        dot_product_mmd(volumes, volumes[:1])


def test_inception_score_of_known_cases():
    sure, unsure = np.repeat(np.eye(4), 3, axis=0), np.full((6, 4), 0.25)
    assert inception_score(sure) == pytest.approx(4)
    assert inception_score(sure[:3]) == pytest.approx(1)
    assert inception_score(unsure) == pytest.approx(1)
    halves = np.array([[0.75, 0.25], [0.25, 0.75]])
    expected = np.exp(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert inception_score(halves) == pytest.approx(expected)


@pytest.mark.parametrize("rows", [np.array([[2.0, -1.0], [0.5, 0.5]]), np.array([[3.0, 1.0], [0.0, 1.0]])])
def test_logits_are_no_probabilities(rows):
    with pytest.raises(ValueError, match="softmax"):
        inception_score(rows)


@pytest.mark.parametrize("distance", DISTANCES)
def test_bad_features_are_refused(generator, distance):
    rows = generator.normal(size=(5, 3))
    with pytest.raises(ValueError, match="one extractor"):
        distance(rows, rows[:, :2])
    with pytest.raises(ValueError, match="undefined for 1 synthetic"):
        distance(rows, rows[:1])
    with pytest.raises(ValueError, match="shape"):
        distance(rows, rows[0])
    with pytest.raises(ValueError, match="NaN"):
        distance(rows, np.full((5, 3), np.nan))


@pytest.mark.parametrize("width", [0, -1.0, float("nan"), "mean"])
def test_other_widths_are_refused(generator, width):
    with pytest.raises(ValueError, match="width"):
        gaussian_mmd(*generator.normal(size=(2, 5, 3)), width=width)


def test_copies_of_one_sample_have_no_width(generator):
    for sample in generator.normal(size=(8, 1, 50)):  # rounding is of either sign
        with pytest.raises(ValueError, match="distinct"):
            gaussian_mmd(generator.normal(size=(4, 50)), np.repeat(sample, 20, axis=0))


def test_counts_are_judged():
    assert check_count("fid", 1000, 1000, 64) == []
    (few,) = check_count("fid", 1000, 500, 64)
    assert "500 synthetic" in few and "few samples" in few
    (deficient,) = check_count("fid", 64, 1000, 64)
    assert "64 real" in deficient and "rank-deficient" in deficient
    assert len(check_count("kid", 20, 1000)) == 1
    assert check_count("rarity", 1000, 1) == []
    assert check_count("inception_score", 0, 1000) == []


@pytest.mark.parametrize(
    ("metric", "counts", "message"),
    [("fid", (1, 9), "1 real"), ("density_coverage", (9, 5), "5 synthetic"), ("fidelity", (9, 9), "unknown")],
)
def test_undefined_counts_are_refused(metric, counts, message):
    with pytest.raises(ValueError, match=message):
        check_count(metric, *counts)
