"""SSIM against scikit-image, MS-SSIM against MONAI, masks, and what a grid admits."""

import numpy as np
import pytest
import torch

from voxdiff.metrics.similarity import ms_ssim
from voxdiff.metrics.structural import (
    MS_SSIM_WEIGHTS,
    SSIMWindow,
    combine_scales,
    contrast_structure_map,
    luminance_map,
    ms_ssim_settings,
    multiscale_ssim,
    ssim,
)


def pair(*shape, noise=0.1):
    real = torch.rand(shape).cumsum(2).cumsum(3)
    real = real / real.amax()
    return real, real + noise * torch.randn(shape)


@pytest.mark.parametrize("data_range", [1.0, 2000.0])
def test_agrees_with_scikit_image_on_an_anisotropic_grid(data_range):
    skimage = pytest.importorskip("skimage.metrics")
    real, synthetic = (data_range * volume for volume in pair(2, 1, 18, 15, 13))
    expected = [
        skimage.structural_similarity(
            x[0].double().numpy(),
            y[0].double().numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=data_range,
        )
        for x, y in zip(real, synthetic, strict=True)
    ]
    assert ssim(real, synthetic, data_range=data_range).tolist() == pytest.approx(expected, abs=1e-9)


def test_the_local_terms_are_those_of_one_window_summed_by_hand():
    real, synthetic = (volume.double() for volume in pair(1, 1, 5, 6, 7))
    window = SSIMWindow(data_range=2.0, kernel_size=5, sigma=1.0)
    offsets = np.arange(5) - 2
    profile = np.exp(-(offsets**2) / 2)
    weights = np.einsum("i,j,k->ijk", profile, profile, profile)
    weights /= weights.sum()
    x, y = (volume[0, 0, :, 1:6, 2:7].numpy() for volume in (real, synthetic))
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
    variances = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
    luminance = (2 * mean_x * mean_y + 4e-4) / (mean_x**2 + mean_y**2 + 4e-4)
    contrast = (2 * np.sqrt(np.prod(variances)) + 36e-4) / (sum(variances) + 36e-4)
    structure = (covariance + 18e-4) / (np.sqrt(np.prod(variances)) + 18e-4)
    assert luminance_map(real, synthetic, window).shape == (1, 1, 1, 2, 3)
    assert luminance_map(real, synthetic, window)[0, 0, 0, 1, 2].item() == pytest.approx(luminance, abs=1e-12)
    terms = contrast_structure_map(real, synthetic, window)[0, 0, 0, 1, 2].item()
    assert terms == pytest.approx(contrast * structure, abs=1e-12)


@pytest.mark.parametrize(("scales", "kernel_size", "sigma"), [(1, 11, 1.5), (2, 7, 1.0), (3, 5, 1.0)])
def test_composed_over_scales_it_is_the_ms_ssim_of_monai(scales, kernel_size, sigma):
    regression = pytest.importorskip("monai.metrics.regression")
    real, synthetic = pair(2, 2, 20, 21, 24, noise=0.05)
    settings = {"data_range": 1.0, "scales": scales, "kernel_size": kernel_size, "sigma": sigma}
    ours = multiscale_ssim(real, synthetic, **settings)
    reference = regression.compute_ms_ssim(
        *(real, synthetic, 3),
        data_range=1.0,
        kernel_size=kernel_size,
        kernel_sigma=sigma,
        weights=[weight / sum(MS_SSIM_WEIGHTS[:scales]) for weight in MS_SSIM_WEIGHTS[:scales]],
    )
    assert ours.tolist() == pytest.approx(reference[:, 0].tolist(), abs=1e-5)
    assert torch.equal(ms_ssim(real, synthetic, **settings), ours.float())
    assert 0.1 < ours.min() < ours.max() < 0.999


def test_equal_volumes_score_exactly_one_and_noise_less():
    real, synthetic = pair(1, 1, 22, 22, 22)
    for metric in (ssim, lambda x, y, **settings: multiscale_ssim(x, y, scales=2, **settings)):
        assert metric(real, real, data_range=1).item() == 1
        assert metric(real, synthetic, data_range=1).item() < 0.9


def test_a_mask_counts_only_the_windows_centred_inside_it():
    real, synthetic = pair(1, 1, 14, 14, 14)
    synthetic[..., 7:] = real[..., 7:]
    mask = torch.zeros(14, 14, 14, dtype=torch.bool)
    mask[5, 6, 5] = mask[0, 0, 0] = True
    window = SSIMWindow(1.0, kernel_size=5)
    values = luminance_map(real, synthetic, window) * contrast_structure_map(real, synthetic, window)
    value = ssim(real, synthetic, data_range=1.0, kernel_size=5, mask=mask).item()
    assert value == pytest.approx(values[0, 0, 3, 4, 3].item(), abs=1e-6)
    mask[:] = False
    mask[..., 9:] = True
    assert ssim(real, synthetic, data_range=1.0, kernel_size=5, mask=mask).item() == 1


def test_scales_halve_the_grid_and_keep_what_is_half_inside_the_mask():
    x, y = torch.arange(128.0).reshape(1, 1, 8, 4, 4), torch.zeros(1, 1, 8, 4, 4)
    mask = torch.zeros(1, 1, 8, 4, 4, dtype=torch.bool)
    mask[0, 0, :2, :2, 0] = mask[0, 0, 4:6, 2:, 2] = True
    mask[0, 0, 0, 0, 0] = False
    seen = []

    def score(x, y, mask, is_last):
        seen.append((x, mask, is_last))
        return torch.tensor([0.5])

    weights = torch.tensor(MS_SSIM_WEIGHTS[:2])
    assert combine_scales(x, y, mask, 2, score).item() == pytest.approx(0.5)
    assert [is_last for _, _, is_last in seen] == [False, True]
    assert seen[1][0].shape == (1, 1, 4, 2, 2) and seen[1][0][0, 0, 0, 0, 0] == x[0, 0, :2, :2, :2].mean()
    assert seen[1][1].nonzero().tolist() == [[0, 0, 2, 1, 1]]
    coarse_weight = (weights[1] / weights.sum()).item()
    value = combine_scales(x, y, None, 2, lambda x, y, mask, is_last: torch.tensor([0.25 if is_last else 1.0]))
    assert value.item() == pytest.approx(0.25**coarse_weight)
    assert combine_scales(x, y, None, 2, lambda *_: torch.tensor([-0.1])).item() == 0


def test_a_masked_ms_ssim_sees_the_mask_on_every_scale():
    real, synthetic = pair(1, 1, 20, 20, 28)
    synthetic[..., 14:] = real[..., 14:]
    mask = torch.zeros(20, 20, 28, dtype=torch.bool)
    mask[..., 18:] = True
    settings = {"data_range": 1.0, "kernel_size": 5, "scales": 2}
    assert multiscale_ssim(real, synthetic, mask=mask, **settings).item() == pytest.approx(1, abs=1e-12)
    assert multiscale_ssim(real, synthetic, mask=~mask, **settings) < multiscale_ssim(real, synthetic, **settings)


@pytest.mark.parametrize(
    ("side", "scales", "kernel_size"),
    [
        *[(240, 5, 11), (176, 5, 11), (175, 4, 11), (99, 4, 11), (98, 3, 11), (64, 3, 11), (32, 2, 11), (22, 2, 11)],
        *[(21, 2, 7), (13, 2, 5), (9, 1, 5), (5, 1, 5)],
    ],
)
def test_the_largest_number_of_scales_that_a_grid_admits(side, scales, kernel_size):
    settings = ms_ssim_settings((1, 1, 300, side, 301))
    assert (settings["scales"], settings["kernel_size"]) == (scales, kernel_size)


@pytest.mark.parametrize("side", [5, 10, 14, 22, 44])
def test_what_it_picks_runs_in_both_implementations_and_one_scale_more_does_not(side):
    pytest.importorskip("monai")
    volume = torch.rand(1, 1, side, side, side)
    settings = ms_ssim_settings(volume.shape)
    assert multiscale_ssim(volume, volume, data_range=1, **settings).item() == 1
    assert ms_ssim(volume, volume, data_range=1, **settings).item() == pytest.approx(1, abs=1e-6)
    settings["scales"] += 1
    with pytest.raises(ValueError, match=f"odd number up to {side // 2 ** (settings['scales'] - 1)}, or fewer"):
        multiscale_ssim(volume, volume, data_range=1, **settings)


def test_a_tiny_grid_has_no_settings():
    with pytest.raises(ValueError, match="at least 5 voxels a side"):
        ms_ssim_settings((4, 64, 64))


def test_bad_input_explains_itself():
    volume = torch.rand(1, 1, 12, 12, 12)
    broken = volume.clone()
    broken[0, 0, 3, 3, 3] = float("nan")
    empty, corner = (torch.zeros(12, 12, 12, dtype=torch.bool) for _ in range(2))
    corner[0, 0, 0] = True
    for arguments, settings, message in [
        ((volume, volume[..., :11]), {}, r"the shapes \(1, 1, 12, 12, 12\) and \(1, 1, 12, 12, 11\)"),
        ((volume[0], volume[0]), {}, "give two of the same shape"),
        ((volume, broken), {}, "NaN or infinite"),
        ((volume, volume), {"data_range": 0}, "data_range is 0"),
        ((volume, volume), {"data_range": float("nan")}, "data_range is nan"),
        ((volume, volume), {"kernel_size": 13}, "odd number up to 12"),
        ((volume, volume), {"kernel_size": 4}, "odd number"),
        ((volume, volume), {"mask": empty}, "mask is empty"),
        ((volume, volume), {"mask": corner}, "no voxel whose window fits"),
        ((volume, volume), {"mask": corner[:5]}, "broadcasts"),
        ((volume, volume), {"mask": corner.float()}, "give booleans"),
    ]:
        with pytest.raises(ValueError, match=message):
            ssim(*arguments, **{"data_range": 1.0, **settings})
    with pytest.raises(ValueError, match="scales is 6"):
        multiscale_ssim(volume, volume, data_range=1.0, scales=6)
