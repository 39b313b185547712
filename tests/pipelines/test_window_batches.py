import torch

from voxdiff.pipelines.slice_windows import SliceWindow
from voxdiff.pipelines.window_batches import (
    cut_windows,
    gather_conditions,
    gather_known,
    spread_generators,
    write_windows,
)

WINDOWS = [
    SliceWindow(first=3, length=3, known=(3,), generated=(4, 5), informed=3),
    SliceWindow(first=0, length=3, known=(2,), generated=(0, 1)),
]
VOLUMES = torch.arange(2 * 6).reshape(2, 1, 1, 1, 6).float()


def test_windows_are_cut_window_by_window_then_volume_by_volume():
    assert cut_windows(WINDOWS, VOLUMES).flatten(1).tolist() == [[3, 4, 5], [9, 10, 11], [0, 1, 2], [6, 7, 8]]


def test_each_window_has_its_own_informed_slice():
    given = torch.tensor([-1.0, -2.0]).reshape(2, 1, 1, 1)
    conditions = gather_conditions(WINDOWS, VOLUMES, VOLUMES + 100, given)
    assert conditions[:, 0].flatten(1).tolist() == [[103, 104, 105], [109, 110, 111], [100, 101, 102], [106, 107, 108]]
    assert conditions[:, 1].flatten(1).tolist() == [[3] * 3, [9] * 3, [-1] * 3, [-2] * 3]
    assert gather_conditions(WINDOWS, VOLUMES, VOLUMES, None).shape == (4, 1, 1, 1, 3)


def test_known_slices_keep_their_slots():
    known = gather_known(WINDOWS, VOLUMES, "matched")
    assert known.noise == "matched"
    assert known.slots.tolist() == [[True, False, False]] * 2 + [[False, False, True]] * 2
    assert known.restore(torch.full((4, 1, 1, 1, 3), -1.0)).flatten(1).tolist() == [
        [3, -1, -1],
        [9, -1, -1],
        [-1, -1, 2],
        [-1, -1, 8],
    ]


def test_only_generated_slices_are_written():
    volumes = torch.zeros_like(VOLUMES)
    write_windows(WINDOWS, cut_windows(WINDOWS, VOLUMES + 1), volumes)
    assert volumes.flatten(1).tolist() == [[1, 2, 0, 0, 5, 6], [7, 8, 0, 0, 11, 12]]


def test_generators_follow_their_volumes():
    first, second = torch.Generator(), torch.Generator()
    assert spread_generators([first, second], 2, 2) == [first, second, first, second]
    assert spread_generators(first, 2, 2) == [first] * 4
    assert spread_generators(None, 2, 2) is None
