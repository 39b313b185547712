import numpy as np
import pytest
import torch
from slice_conditioned_sets import (
    Reference,
    count_work,
    head_ends,
    measure_jumps,
    seam_places,
    similarity_settings,
    slice_jumps,
)

from voxdiff.metrics.similarity import ms_ssim
from voxdiff.pipelines.slice_stages import plan_stages


@pytest.mark.parametrize("side", [32, 64])
def test_similarity_is_defined_on_the_grids_in_use(side):
    volume = torch.rand(1, 1, *(side,) * 3)
    assert ms_ssim(volume, volume, **similarity_settings(volume.shape)).item() == pytest.approx(1)


def test_ends_of_a_head_along_the_axis():
    volume = torch.zeros(1, 8, 8, 10)
    volume[0, 2:6, 2:6, 3:7] = 0.5
    assert head_ends(volume, 2) == {"first": 3, "last": 6}
    assert head_ends(volume, 0) == {"first": 2, "last": 5}
    assert head_ends(torch.zeros(1, 4, 4, 4), 2) == {"first": -1, "last": -1}


def test_jumps_are_between_neighbouring_slices():
    volume = torch.arange(4.0).square().expand(1, 2, 3, 4)
    assert slice_jumps(volume, 2).tolist() == [1, 3, 5]
    assert slice_jumps(volume, 0).tolist() == [0]


def test_jumps_are_counted_for_all_neighbours_and_at_the_seams():
    steps = torch.tensor([0.0, 1, 2, 5, 6]).expand(1, 2, 2, 5)
    reference = Reference([], 2, {}, [], np.ones(4))
    row = measure_jumps([steps, steps], reference, seams=[2])
    assert {name: found["mean"] for name, found in row.items()} == {"jump": 1.5, "stage_jump": 1, "seam_jump": 3}
    assert {name: found["mean"] for name, found in measure_jumps([steps, steps], reference, ()).items()} == {
        "jump": 1.5
    }


def test_work_and_seams_of_the_papers_scheme():
    stages = plan_stages(128, scheme="autoregressive")
    assert count_work(stages, 1000) == {"calls": 13000, "slices": (128 + 120) * 1000}
    assert seam_places(stages, 128) == list(range(9, 127, 10))
