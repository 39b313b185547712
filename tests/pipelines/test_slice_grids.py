import itertools

import numpy as np
import pytest
from slice_pipelines import make_slice_processor

from voxdiff.pipelines.slice_grids import find_factor, find_positions, refine_grid, straighten, turn_volume, voxel_sizes

OBLIQUE = np.array([[1.8, -0.6, 0.1, 5], [0.6, 1.9, 0.2, -7], [-0.1, -0.3, 5.9, 2], [0, 0, 0, 1]])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("factor", "extend"), [(1, (0, 0)), (4, (0, 0)), (3, (2, 5))])
def test_slices_stay_in_the_world_where_they_were(axis, factor, extend):
    affine, shape = refine_grid(OBLIQUE, (4, 5, 6), axis, factor=factor, extend=extend)
    assert shape[axis] == ((4, 5, 6)[axis] - 1) * factor + 1 + sum(extend)
    assert voxel_sizes(affine)[axis] == pytest.approx(voxel_sizes(OBLIQUE)[axis] / factor)
    for index in itertools.product((0, 3), (0, 4), (0, 5)):
        moved = list(index)
        moved[axis] = extend[0] + factor * index[axis]
        np.testing.assert_allclose(affine @ [*moved, 1], OBLIQUE @ [*index, 1], atol=1e-12)


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAR", "PIL"])
def test_turning_keeps_every_voxel_at_its_place(orientation):
    values = np.arange(24.0).reshape(2, 3, 4)
    turned, affine = turn_volume(values, OBLIQUE, orientation)
    for index in np.ndindex(turned.shape):
        place = np.linalg.inv(OBLIQUE) @ affine @ [*index, 1]
        assert turned[index] == values[tuple(np.round(place[:3]).astype(int))]
        assert abs(place - np.round(place)).max() < 1e-9


def test_a_straight_grid_keeps_size_and_spacing():
    straight = straighten(OBLIQUE, (4, 5, 6), "RAS")
    np.testing.assert_allclose(straight[:3, :3], np.diag(voxel_sizes(OBLIQUE)))


def test_factor_and_spacing_are_two_names_of_one_thing():
    assert find_factor(6.0, None, None) == 1
    assert find_factor(6.0, 4, None) == find_factor(6.0, None, 1.5) == 4
    assert find_factor(3.59, None, 1.2) == 3  # headers round


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((2, 3.0), "factor=2 and slice_spacing=3.0 were given; give one"),
        ((0, None), "factor is 0; give a whole number of at least 1"),
        ((2.5, None), "factor is 2.5; give"),
        ((None, 4.0), "4 mm, which does not divide the volume's 6 mm; the known slices stay in place with 3 or 6 mm"),
        ((None, 9.0), "does not divide the volume's 6 mm"),
        ((None, -1.0), "slice_spacing is -1 mm"),
        ((None, "thin"), "slice_spacing is 'thin'; give one number of mm"),
    ],
)
def test_a_spacing_that_would_move_slices_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        find_factor(6.0, *arguments)


def test_positions_count_slices_of_the_model():
    processor = make_slice_processor()  # 12 slices of 3 mm
    assert find_positions(12, 3.0, processor, 2).tolist() == list(range(12))
    assert find_positions(5, 1.5, processor, 2).tolist() == [4.5, 5.0, 5.5, 6.0, 6.5]
    assert find_positions(3, 6.0, processor, 2, first_position=1).tolist() == [1, 3, 5]
    assert find_positions(8, 2.0, processor, 0).tolist() == list(range(8))
    assert find_positions(4, 9.0, make_slice_processor(spacing=None, size=None), 2).tolist() == [0, 1, 2, 3]
