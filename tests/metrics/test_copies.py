"""Planted copies of smooth random fields, under every transform that the distance must see through."""

import pytest
import torch
import torch.nn.functional as F
from textured_balls import random_volumes

from voxdiff.metrics.copies import CopyReferences, copy_distances, rank_features

SIZE = 24


@pytest.fixture(scope="module")
def references() -> torch.Tensor:
    return random_volumes(6, seed=1)


@pytest.fixture(scope="module")
def least_heldout(references) -> float:
    return copy_distances(random_volumes(4, seed=2), references, candidates=3, max_shift=1 / 8).distances.min().item()


def warped(volume: torch.Tensor, voxels: float) -> torch.Tensor:
    wave = torch.sin(torch.linspace(0, 2 * torch.pi, SIZE))
    field = torch.stack([w.expand(SIZE, SIZE, SIZE) for w in (wave[:, None, None], wave[None, :, None], wave)], dim=-1)
    identity = F.affine_grid(torch.eye(3, 4)[None], [1, 1, SIZE, SIZE, SIZE], align_corners=True)
    return F.grid_sample(volume[None], identity + 2 / (SIZE - 1) * voxels * field, align_corners=True)[0]


def test_ready_references_give_the_same(references):
    volumes = random_volumes(2, seed=3)
    ready = CopyReferences(references)
    again = [copy_distances(volumes[place : place + 1], ready, candidates=3).distances.item() for place in range(2)]
    assert again == copy_distances(volumes, references, candidates=3).distances.tolist()
    with pytest.raises(ValueError, match="no references"):
        CopyReferences([])


@pytest.mark.parametrize(
    ("copied", "limit"),
    [
        (lambda volume: volume, 1e-5),
        (lambda volume: volume.flip(1), 1e-5),
        (lambda volume: volume.flip(2, 3), 1e-5),
        (lambda volume: 0.7 * volume - 3, 1e-5),
        (lambda volume: volume**1.3, 0.12),
        (lambda volume: volume.roll((2, -1, 1), (1, 2, 3)), 1e-5),
        (lambda volume: volume + 0.02 * torch.randn(volume.shape, generator=torch.Generator().manual_seed(0)), 0.06),
        (lambda volume: warped(volume, 0.5), 0.13),
        (lambda volume: warped(volume.flip(1), 0.5).roll(2, 3) ** 0.8, 0.17),
    ],
    ids=["exact", "flip", "two flips", "linear", "gamma", "shift", "noise", "warp", "all"],
)
def test_copies_lie_nearer_than_heldout_volumes(references, least_heldout, copied, limit):
    matches = copy_distances(copied(references[4])[None], references, candidates=3, max_shift=1 / 8)
    assert matches.nearest.tolist() == [4]
    assert matches.distances.item() < limit < least_heldout


def test_flip_and_shift_carry_the_reference_to_the_volume(references):
    volume = references[2].flip(1).roll((2, -1), (1, 2))
    matches = copy_distances(volume[None], references, candidates=2, max_shift=1 / 8)
    assert matches.flips == ((0,),)
    assert matches.shifts.tolist() == [[2, -1, 0]]
    back = references[2].flip([axis + 1 for axis in matches.flips[0]]).roll(matches.shifts[0].tolist(), (1, 2, 3))
    assert torch.equal(back, volume)


@pytest.mark.parametrize("shift", [(1, -1, 1), (2, 3, -4)])
def test_shifts_of_part_of_a_cell_are_seen_and_given_in_voxels(shift):
    references = random_volumes(3, seed=3, size=36)
    volume = references[1].flip(2).roll(shift, (1, 2, 3))
    matches = copy_distances(volume[None], references, candidates=2, max_shift=1 / 8)
    assert matches.distances.item() < 1e-5
    assert matches.shifts.tolist() == [list(shift)]


def test_searching_no_flips_and_no_shifts_misses_them(references):
    settings = {"candidates": 3, "max_shift": 0, "flips": [()]}
    assert copy_distances(references[:1].flip(2), references, **settings).distances.item() > 0.2
    assert copy_distances(references[:1].roll(2, 2), references, **settings).distances.item() > 0.01
    assert copy_distances(references[:1], references, **settings).distances.item() < 1e-5


def test_neighbours_are_sorted_and_a_copy_has_a_small_ratio(references):
    volumes = torch.cat([references[3:4], random_volumes(1, seed=4)])
    matches = copy_distances(volumes, references, candidates=4)
    assert matches.neighbours.shape == (2, 4)
    assert (matches.neighbour_distances.diff(dim=1) >= 0).all()
    assert torch.equal(matches.neighbour_distances[:, 0], matches.distances)
    expected = matches.distances / matches.neighbour_distances[:, 1:].mean(dim=1)
    assert torch.allclose(matches.ratios, expected)
    assert matches.ratios[0] < 0.01 < 0.5 < matches.ratios[1]
    with pytest.raises(ValueError, match="raise candidates"):
        _ = copy_distances(volumes, references, candidates=1).ratios


def test_a_set_against_itself_leaves_each_volume_out():
    volumes = random_volumes(3, seed=5)
    volumes[2] = volumes[0]
    matches = copy_distances(volumes, volumes, candidates=2, exclude_same_index=True)
    assert matches.nearest[[0, 2]].tolist() == [2, 0]
    assert matches.nearest[1] != 1 and matches.distances[1] > 0.2


def test_a_lazy_sequence_gives_the_same_as_a_tensor(references):
    whole = copy_distances(references[:2].flip(3), references, candidates=2)
    listed = copy_distances(list(references[:2].flip(3)), list(references), candidates=2)
    assert torch.equal(whole.neighbour_distances, listed.neighbour_distances)


def test_grids_that_no_factor_divides():
    random = torch.Generator().manual_seed(6)
    references = F.interpolate(torch.rand((3, 2, 6, 5, 4), generator=random), size=(45, 33, 20), mode="trilinear")
    matches = copy_distances(references.flip(1 + 1), references, candidates=2)
    assert matches.nearest.tolist() == [0, 1, 2]
    assert matches.distances.max() < 0.2


def test_a_volume_of_one_value_is_like_nothing(references):
    matches = copy_distances(torch.ones_like(references[:1]), references, candidates=1)
    assert matches.distances.item() == pytest.approx(1)


def test_ranks_ignore_linear_maps_and_share_equal_values():
    volume = random_volumes(1, seed=7)[0]
    ranks = rank_features(volume)
    # Rounding may move a cell across the threshold of the foreground.
    assert (ranks - rank_features(200 * volume - 1000)).abs().mean() < 1e-3
    assert (ranks[volume == 0] == 0).all()
    assert ranks.min() > -1.001 and ranks.max() < 1.001 and abs(ranks[volume > 0].mean()) < 1e-3
    steps = torch.zeros(1, 8, 8, 8)
    steps[:, :, :2], steps[:, :, 2:3] = 2, 3
    assert rank_features(steps).unique().tolist() == pytest.approx([-1 / 3, 0, 2 / 3])


@pytest.mark.parametrize(
    ("volumes", "settings", "message"),
    [
        (torch.rand(0, 1, 8, 8, 8), {}, "0 volumes"),
        (torch.rand(1, 1, 8, 8, 8), {"candidates": 0}, "0 candidates"),
        (torch.rand(1, 1, 8, 8, 8), {"max_shift": 0.5}, "max_shift 0.5"),
        (torch.rand(1, 1, 8, 8, 8), {"flips": []}, "0 flips"),
        (torch.rand(1, 1, 8, 8, 9), {}, "one shape"),
        (torch.full((1, 1, 8, 8, 8), torch.nan), {}, "not finite"),
    ],
)
def test_bad_input_is_named(volumes, settings, message):
    with pytest.raises(ValueError, match=message):
        copy_distances(volumes, torch.rand(2, 1, 8, 8, 8), **settings)
