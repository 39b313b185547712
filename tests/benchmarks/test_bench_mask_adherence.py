import numpy as np
import pytest
from bench_mask_adherence import example, region_dice
from resampling_runs import make_case

from voxdiff import VolumeProcessor


def test_dice_is_the_mean_of_the_networks_over_volumes_that_have_the_region():
    masks = [np.zeros((2, 2, 2), dtype=np.uint8) for _ in range(3)]
    masks[0][0] = masks[1][0] = 1
    nothing = [np.zeros_like(mask) for mask in masks]
    found = region_dice([masks, nothing], masks, {"tumour": (1,), "other": (2,)})
    assert found == {"tumour": {"mean": pytest.approx(0.5), "low": 0.5, "high": 0.5, "n": 2}}


def test_the_brain_is_not_to_be_found():
    case = make_case("s0")
    processor = VolumeProcessor(intensity="window", low=0.0, high=1.0, unit="a.u.")
    image, labels = example(case.image, np.asarray(case.mask.dataobj), processor)
    assert image.shape == labels.shape and set(np.unique(labels)) == {0, 1}
    ct = VolumeProcessor(intensity="window", low=-1000, high=1000, unit="HU")
    assert 4 in example(case.image, np.asarray(case.mask.dataobj), ct)[1]
