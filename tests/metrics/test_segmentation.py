"""Dice and HD95 of boxes with closed forms, against MONAI on blobs, and of empty labels."""

import sys

import numpy as np
import pytest
import torch
from scipy import ndimage

from voxdiff.metrics.segmentation import BRATS_REGIONS, dice, hd95, segmentation_metrics

UNIT = (1, 1, 1)


def box(*corners, shape=(20, 20, 20), label=1):
    volume = np.zeros(shape, dtype=np.uint8)
    volume[tuple(slice(low, high) for low, high in corners)] = label
    return volume


def blob(seed, threshold=0.2):
    noise = np.random.default_rng(seed).normal(size=(20, 24, 17))
    smooth = ndimage.gaussian_filter(noise, 2)
    return (smooth > threshold * smooth.max()).astype(np.uint8)


def test_dice_of_two_shifted_boxes():
    a, b = box((2, 12), (2, 12), (2, 12)), box((5, 15), (2, 12), (2, 12))
    assert dice(a, b, 1) == 0.7
    assert dice(a, a, 1) == 1
    assert dice(a, 2 * b, 1) == 0


def test_hd95_of_a_shift_is_the_shift_in_mm():
    a, b = box((4, 8), (4, 16), (4, 16)), box((4, 8), (4, 16), (7, 19))
    assert hd95(a, b, 1, spacing_mm=(1, 1, 2.5)) == pytest.approx(7.5)
    assert hd95(a, a, 1, spacing_mm=UNIT) == 0


def test_hd95_is_the_larger_direction_and_leaves_out_the_last_twentieth():
    """A plate of 10 x 10 voxels, and the same with columns above some of them."""
    plate = box((5, 15), (5, 15), (5, 6))
    tall = plate | box((5, 9), (5, 6), (5, 12))
    distances = np.r_[np.zeros(100), np.tile(np.arange(1, 7), 4)]
    expected = np.percentile(distances, 95)
    assert 0 < expected < 6
    assert hd95(tall, plate, 1, spacing_mm=UNIT) == pytest.approx(expected)
    assert hd95(plate, tall, 1, spacing_mm=UNIT) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_monai_on_blobs_with_anisotropic_spacing(seed):
    metrics = pytest.importorskip("monai.metrics")
    a, b, spacing = blob(seed), blob(seed + 10, 0.4), (0.8, 1.0, 3.0)
    batch = [torch.from_numpy(volume)[None, None] for volume in (a, b)]
    distance = metrics.compute_hausdorff_distance(*batch, include_background=True, percentile=95, spacing=spacing)
    assert hd95(a, b, 1, spacing_mm=spacing) == pytest.approx(distance.item(), rel=1e-5)
    assert distance.item() > 3
    overlap = metrics.compute_dice(*batch, include_background=True)
    assert dice(a, b, 1) == pytest.approx(overlap.item(), rel=1e-5)


def test_an_empty_label():
    empty, full = np.zeros((10, 20, 30), dtype=int), box((2, 5), (2, 5), (2, 5), shape=(10, 20, 30))
    spacing = (3, 2, 0.5)
    assert dice(empty, empty, 1) == 1 and hd95(empty, empty, 1, spacing_mm=spacing) == 0
    for pair in ((empty, full), (full, empty)):
        assert dice(*pair, 1) == 0
        assert hd95(*pair, 1, spacing_mm=spacing) == pytest.approx((30**2 + 40**2 + 15**2) ** 0.5)


def test_brats_regions():
    assert BRATS_REGIONS == {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
    reference = box((2, 12), (2, 12), (2, 12), label=2)
    reference[4:8, 4:8, 4:8] = 1
    reference[4:8, 4:8, 4:6] = 3
    prediction = reference.copy()
    prediction[4:8, 4:8, 5:6] = 1
    prediction[4:8, 4:8, 7:8] = 2
    result = segmentation_metrics(prediction, reference, spacing_mm=(1, 1, 2))
    assert list(result) == ["dice_WT", "hd95_WT", "dice_TC", "hd95_TC", "dice_ET", "hd95_ET"]
    assert (result["dice_WT"], result["hd95_WT"]) == (1, 0)
    assert (result["dice_TC"], result["hd95_TC"]) == (pytest.approx(2 * 48 / (48 + 64)), 2)
    assert (result["dice_ET"], result["hd95_ET"]) == (pytest.approx(2 * 16 / (16 + 32)), 2)


def test_own_regions_and_label_maps_from_files():
    a, b = box((2, 12), (2, 12), (2, 12)), box((5, 15), (2, 12), (2, 12))
    result = segmentation_metrics(a.astype(np.float32), b > 0, spacing_mm=UNIT, regions={"liver": 1})
    assert result == {"dice_liver": 0.7, "hd95_liver": 3}


def test_bad_input_explains_itself():
    volume = box((2, 5), (2, 5), (2, 5))
    for pair, spacing, message in [
        ((volume, volume[1:]), UNIT, r"shapes \(20, 20, 20\) and \(19, 20, 20\)"),
        ((volume[None], volume[None]), UNIT, r"same shape \(x, y, z\)"),
        ((volume, volume * 0.5), UNIT, "not whole numbers"),
        ((volume, np.full(volume.shape, np.inf)), UNIT, "not whole numbers"),
        ((volume, volume), (1, 1), "three positive numbers"),
        ((volume, volume), (1, 0, 1), "three positive numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            hd95(*pair, 1, spacing_mm=spacing)


def test_missing_scipy_explains_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    volume = box((2, 5), (2, 5), (2, 5))
    with pytest.raises(ModuleNotFoundError, match=r"voxdiff\[metrics\]"):
        hd95(volume, volume, 1, spacing_mm=UNIT)
