"""G-SSIM and its four-region relatives against dense loops, closed forms and constructed regions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from voxdiff import CohortDataset
from voxdiff.metrics.gradient_similarity import (
    REGIONS,
    four_g_ssim,
    four_ms_g_ssim,
    four_regions,
    four_ssim,
    g_ssim,
    gradient_magnitude,
    region_mean,
)
from voxdiff.metrics.structural import MS_SSIM_WEIGHTS, ssim


@pytest.fixture(scope="module")
def brain():
    return CohortDataset(1, size=32)[0]["t1"][None]


def blur(volume, sigma=1.0):
    offsets = torch.arange(7) - 3.0
    profile = torch.exp(-((offsets / sigma) ** 2) / 2)
    profile = profile / profile.sum()
    for shape in ((7, 1, 1), (1, 7, 1), (1, 1, 7)):
        padding = [extent // 2 for extent in shape[::-1] for _ in range(2)]
        volume = F.conv3d(F.pad(volume, padding, mode="replicate"), profile.reshape(1, 1, *shape))
    return volume


def dense_gradient(volume):
    """Sobel magnitude of (x, y, z), voxel by voxel, from the 27 weights of each mask."""
    side, smooth = np.array([-1, 0, 1]), np.array([1, 2, 1]) / 2
    masks = [
        np.einsum("i,j,k->ijk", *(side if axis == direction else smooth for axis in range(3))) for direction in range(3)
    ]
    padded = np.pad(volume, 1, mode="edge")
    result = np.empty_like(volume)
    for i, j, k in np.ndindex(*volume.shape):
        block = padded[i : i + 3, j : j + 3, k : k + 3]
        result[i, j, k] = np.sqrt(sum((block * mask).sum() ** 2 for mask in masks))
    return result


def dense_four_g_ssim(real, synthetic, kernel_size, sigma, with_luminance=True, regions=True):
    """4-G-SSIM (or G-SSIM) of (x, y, z) in [0, 1] by loops over windows, with moments about the mean."""
    offsets = np.arange(kernel_size) - kernel_size // 2
    profile = np.exp(-(offsets**2) / (2 * sigma**2))
    weights = np.einsum("i,j,k->ijk", profile, profile, profile)
    weights /= weights.sum()
    gradients = dense_gradient(real), dense_gradient(synthetic)
    largest = gradients[0].max()
    scores = {0: [], 1: [], 2: [], 3: []}
    for corner in np.ndindex(*(side - kernel_size + 1 for side in real.shape)):
        box = tuple(slice(start, start + kernel_size) for start in corner)
        centre = tuple(start + kernel_size // 2 for start in corner)
        mean_x, mean_y = (weights * real[box]).sum(), (weights * synthetic[box]).sum()
        p, q = gradients[0][box], gradients[1][box]
        p_off, q_off = p - (weights * p).sum(), q - (weights * q).sum()
        value = (2 * (weights * p_off * q_off).sum() + 9e-4) / ((weights * (p_off**2 + q_off**2)).sum() + 9e-4)
        if with_luminance:
            value *= (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
        edges = gradients[0][centre] > 0.12 * largest, gradients[1][centre] > 0.12 * largest
        if edges[0] and edges[1]:
            region = 0
        elif edges[0] or edges[1]:
            region = 1
        else:
            region = 2 if gradients[0][centre] < 0.06 * largest else 3
        scores[region].append(value)
    if not regions:
        return np.mean(np.concatenate([values for values in scores.values() if values]))
    return np.mean([np.mean(values) for values in scores.values() if values])


def small_pair():
    """A pair whose windows meet all four regions."""
    generator = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in (12, 13, 14)), indexing="ij")
    real = 0.2 + 0.6 / (1 + np.exp(12 * (np.sqrt(x**2 + y**2 + z**2) - 0.7))) + 0.008 * generator.random(x.shape)
    synthetic = 0.2 + 0.6 / (1 + np.exp(8 * (np.sqrt(x**2 + y**2 + (z - 0.2) ** 2) - 0.6)))
    return real, synthetic


def tensors(*volumes):
    return [torch.from_numpy(volume)[None, None] for volume in volumes]


def test_sobel_of_a_ramp_an_axis_of_rest_and_loops():
    ramp = torch.arange(6.0).reshape(1, 1, 1, 6, 1).expand(1, 1, 5, 6, 7)
    magnitude = gradient_magnitude(ramp)
    assert torch.equal(magnitude[..., 1:-1, :], torch.full((1, 1, 5, 4, 7), 8.0))
    assert torch.equal(magnitude[..., [0, -1], :], torch.full((1, 1, 5, 2, 7), 4.0))
    real, _ = small_pair()
    assert gradient_magnitude(*tensors(real))[0, 0].numpy() == pytest.approx(dense_gradient(real), abs=1e-12)


def test_agrees_with_loops_over_windows():
    real, synthetic = small_pair()
    settings = {"data_range": 1.0, "kernel_size": 5, "sigma": 1.5}
    regions = four_regions(*(gradient_magnitude(volume) for volume in tensors(real, synthetic)))
    assert sorted(regions[..., 2:-2, 2:-2, 2:-2].unique().tolist()) == [0, 1, 2, 3]
    expected = dense_four_g_ssim(real, synthetic, 5, 1.5, regions=False)
    assert g_ssim(*tensors(real, synthetic), **settings).item() == pytest.approx(expected, abs=1e-10)
    expected = dense_four_g_ssim(real, synthetic, 5, 1.5)
    assert four_g_ssim(*tensors(real, synthetic), **settings).item() == pytest.approx(expected, abs=1e-10)


def test_scales_draw_their_own_regions_and_only_the_last_has_luminance():
    real, synthetic = small_pair()
    means = [F.avg_pool3d(volume, 2)[0, 0].numpy() for volume in tensors(real, synthetic)]
    fine = dense_four_g_ssim(real, synthetic, 5, 1.5, with_luminance=False)
    coarse = dense_four_g_ssim(*means, 5, 1.5)
    first, second = MS_SSIM_WEIGHTS[:2]
    expected = fine ** (first / (first + second)) * coarse ** (second / (first + second))
    score = four_ms_g_ssim(*tensors(real, synthetic), data_range=1.0, scales=2, kernel_size=5)
    assert score.item() == pytest.approx(expected, abs=1e-10)


def test_a_ramp_has_no_contrast_in_its_gradient_and_leaves_the_luminance_term():
    ramp = (torch.arange(9.0) / 8).reshape(1, 1, 9, 1, 1).expand(1, 1, 9, 7, 7)
    middle = (torch.arange(9) == 4).reshape(9, 1, 1)
    score = g_ssim(ramp, torch.full_like(ramp, 0.25), data_range=1.0, kernel_size=7, mask=middle)
    assert score.item() == pytest.approx((2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4), abs=1e-9)


@pytest.mark.parametrize("metric", [g_ssim, four_ssim, four_g_ssim, four_ms_g_ssim])
def test_equal_volumes_score_exactly_one_and_worse_ones_less(brain, metric):
    settings = {"data_range": 1.0, **({"scales": 2} if metric is four_ms_g_ssim else {})}
    assert metric(brain, brain, **settings).item() == 1
    slight, strong = metric(brain, blur(brain, 0.6), **settings), metric(brain, blur(brain, 1.2), **settings)
    assert strong < slight < 0.999


def test_a_blur_costs_more_on_edges(brain):
    blurred = blur(brain)
    plain = ssim(brain, blurred, data_range=1.0)
    assert g_ssim(brain, blurred, data_range=1.0) < plain - 0.05
    assert four_g_ssim(brain, blurred, data_range=1.0) < plain - 0.05


def test_regions_by_their_definition():
    real = torch.tensor([100.0, 13, 13, 11, 11, 5, 5, 12, 6, 7])
    synthetic = torch.tensor([0.0, 13, 12, 13, 5, 13, 12, 12, 0, 0])
    labels = four_regions(real.reshape(1, 1, -1, 1, 1), synthetic.reshape(1, 1, -1, 1, 1)).flatten().tolist()
    assert [REGIONS[label] for label in labels] == [
        "changed_edge",
        "preserved_edge",
        "changed_edge",
        "changed_edge",
        "texture",
        "changed_edge",
        "smooth",
        "texture",
        "texture",
        "texture",
    ]


def test_regions_of_a_pair_of_cubes():
    """An edge that stays, one that goes, one that comes, and rest."""
    real, synthetic = torch.zeros(2, 1, 1, 24, 24, 24)
    real[..., 4:8, 8:16, 8:16] = synthetic[..., 4:8, 8:16, 8:16] = 1
    real[..., 12:16, 8:16, 8:16] = 1
    synthetic[..., 20:24, 8:16, 8:16] = 1
    regions = four_regions(gradient_magnitude(real), gradient_magnitude(synthetic))[0, 0]
    assert [REGIONS[label] for label in regions[[4, 12, 19, 2], 10, 10].tolist()] == [
        "preserved_edge",
        "changed_edge",
        "changed_edge",
        "smooth",
    ]


def test_thresholds_belong_to_each_channel_and_a_flat_volume_has_regions():
    gradients = torch.tensor([[1.0, 0.1], [100.0, 10.0]]).reshape(1, 2, 2, 1, 1)
    assert four_regions(gradients, gradients).flatten().tolist() == [0, 3, 0, 3]
    flat = torch.zeros(1, 1, 2, 1, 1)
    assert four_regions(flat, flat).flatten().tolist() == [3, 3]
    assert four_regions(flat, torch.tensor([0.0, 1]).reshape(1, 1, 2, 1, 1)).flatten().tolist() == [3, 1]


def test_regions_partition_the_volume_and_empty_ones_share_their_weight():
    regions = torch.tensor([0, 0, 0, 2, 2, 3], dtype=torch.uint8).reshape(1, 1, 6, 1, 1)
    values = torch.tensor([0.1, 0.2, 0.3, 0.5, 0.7, 1.0]).reshape(1, 1, 6, 1, 1)
    assert region_mean(values, regions).item() == pytest.approx((0.2 + 0.6 + 1.0) / 3)
    mask = torch.tensor([0, 1, 0, 1, 1, 0]).bool().reshape(1, 1, 6, 1, 1)
    assert region_mean(values, regions, mask).item() == pytest.approx((0.2 + 0.6) / 2)


def test_a_mask_is_where_the_difference_counts(brain):
    synthetic = brain.clone()
    synthetic[..., 20:] += 0.2 * torch.randn_like(synthetic[..., 20:])
    mask = torch.zeros(32, 32, 32, dtype=torch.bool)
    mask[..., :14] = True
    for metric in (g_ssim, four_ssim, four_g_ssim):
        assert metric(brain, synthetic, data_range=1.0, mask=mask).item() == pytest.approx(1, abs=1e-12)
        assert metric(brain, synthetic, data_range=1.0, mask=~mask).item() < 0.95
    settings = {"data_range": 1.0, "scales": 2, "kernel_size": 5}
    assert four_ms_g_ssim(brain, synthetic, mask=mask, **settings).item() == pytest.approx(1, abs=1e-12)
    assert four_ms_g_ssim(brain, synthetic, mask=~mask, **settings).item() < 0.95


def test_bad_input_explains_itself(brain):
    corner = torch.zeros(32, 32, 32, dtype=torch.bool)
    corner[0, 0, 0] = True
    for metric in (g_ssim, four_ssim, four_g_ssim, four_ms_g_ssim):
        with pytest.raises(ValueError, match="same shape"):
            metric(brain, brain[..., 1:], data_range=1.0)
        with pytest.raises(ValueError, match="kernel_size is 33"):
            metric(brain, brain, data_range=1.0, kernel_size=33)
    with pytest.raises(ValueError, match="no voxel whose window fits"):
        four_g_ssim(brain, brain, data_range=1.0, mask=corner)
