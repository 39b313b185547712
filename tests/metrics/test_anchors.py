import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from voxdiff.metrics.anchors import anchor_sets, gaussian_blur, mean_image, random_halves


def volumes(number=4):
    return [torch.rand((1, 8, 9, 10), generator=torch.Generator().manual_seed(seed)) for seed in range(number)]


def test_anchors_by_name():
    reals = volumes()
    sets = anchor_sets(reals)
    assert [len(found) for found in sets.values()] == [4, 4, 4, 4]
    assert torch.equal(sets["real"][2], reals[2])
    assert torch.equal(sets["one repeated"][3], reals[0])
    assert torch.allclose(sets["mean image"][1], torch.stack(reals).mean(0))
    assert torch.equal(sets["blurred real"][1], gaussian_blur(reals[1], 1.0))
    assert len(sets["blurred real"][1:3]) == 2
    with pytest.raises(IndexError):
        sets["blurred real"][4]


def test_blur_is_gaussian():
    volume = volumes(1)[0]
    expected = gaussian_filter(volume[0].numpy().astype(np.float64), 1.5, mode="nearest", truncate=4)
    assert np.abs(gaussian_blur(volume, 1.5)[0].numpy() - expected).max() < 1e-5


def test_mean_image_of_many_is_exact():
    assert mean_image([torch.full((1, 2, 2, 2), 0.1)] * 1000).unique().tolist() == pytest.approx([0.1])


def test_halves_are_disjoint_and_belong_to_the_seed():
    first, second = random_halves(11, 3)
    assert len(first) == 5 and sorted([*first, *second]) == list(range(11))
    assert np.array_equal(first, random_halves(11, 3)[0])
    assert not np.array_equal(first, random_halves(11, 4)[0])
