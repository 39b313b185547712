import numpy as np
import pytest
import torch

from voxdiff.data.mask_augmentation import augment_mask, transform_mask

GRID, SPACING = (32, 28, 20), (1.0, 1.5, 2.0)


def millimetres(grid=GRID, spacing=SPACING):
    """Coordinates of the voxels in mm from the centre of the grid."""
    axes = [(np.arange(count) - (count - 1) / 2) * edge for count, edge in zip(grid, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def make_mask(centre=(-4.0, 3.0, 2.0), radius=5.0, grid=GRID, spacing=SPACING, brain=13.5):
    """A ball of brain about the centre of the grid with a ball of tumour: oedema around an enhancing core."""
    places = millimetres(grid, spacing)
    distance = np.linalg.norm(places - np.reshape(centre, (3, 1, 1, 1)), axis=0)
    labels = np.where(np.linalg.norm(places, axis=0) < brain, 4, 0)
    return np.where(distance < radius / 2, 3, np.where(distance < radius, 2, labels)).astype(np.uint8)


def is_tumour(labels):
    return np.isin(labels, (1, 2, 3))


def centroid(region, spacing=SPACING):
    return np.array([axis[region].mean() for axis in millimetres(region.shape, spacing)])


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("shift", [(3.0, 0.0, 0.0), (0.0, -4.5, 0.0), (0.0, 0.0, -4.0), (3.3, -2.2, -1.7)])
def test_the_tumour_moves_by_the_asked_millimetres(shift):
    mask = make_mask()
    moved = transform_mask(mask, spacing=SPACING, shift=shift)
    way = centroid(is_tumour(moved)) - centroid(is_tumour(mask))
    assert (np.abs(way - shift) <= np.array(SPACING) / 2).all()
    assert ((moved > 0) == (mask > 0)).all()  # the anatomy stays, what the tumour left is brain
    assert (moved[is_tumour(mask) & ~is_tumour(moved)] == 4).all()


def test_a_shift_by_whole_voxels_is_exact():
    mask = make_mask()
    moved = transform_mask(mask, spacing=SPACING, shift=(2.0, -3.0, -2.0))
    assert np.array_equal(is_tumour(moved) * moved, np.roll(is_tumour(mask) * mask, (2, -2, -1), axis=(0, 1, 2)))


@pytest.mark.parametrize("scale", [0.7, 0.85, 1.0, 1.15, 1.25])
def test_the_volume_of_the_tumour_scales_with_the_third_power(scale):
    spacing = (0.4, 0.45, 0.6)
    mask = make_mask((0.1, -0.1, 0.2), 4.5, spacing=spacing, brain=5.9)
    scaled = transform_mask(mask, spacing=spacing, scale=scale)
    assert is_tumour(scaled).sum() / is_tumour(mask).sum() == pytest.approx(scale**3, rel=0.08)
    assert np.abs(centroid(is_tumour(scaled), spacing) - centroid(is_tumour(mask), spacing)).max() < 0.1


def test_a_flip_is_exact():
    mask = make_mask()
    assert np.array_equal(transform_mask(mask, spacing=SPACING, flip=True), mask[::-1])
    moved = transform_mask(mask, spacing=SPACING, flip=True, shift=(2.0, 0.0, 0.0))
    assert np.array_equal(moved, transform_mask(mask, spacing=SPACING, shift=(2.0, 0.0, 0.0))[::-1])


def test_a_quarter_turn_is_exact_and_right_handed():
    mask = make_mask(grid=(24, 24, 24), spacing=(1, 1, 1), brain=11)
    for axis, plane in enumerate([(1, 2), (2, 0), (0, 1)]):
        rotation = np.eye(3)[axis] * 90
        assert np.array_equal(transform_mask(mask, spacing=(1, 1, 1), rotation=rotation), np.rot90(mask, axes=plane))
    turned = transform_mask(mask, spacing=(1, 1, 1), rotation=(90, 0, 90))
    assert np.array_equal(turned, np.rot90(np.rot90(mask, axes=(1, 2)), axes=(0, 1)))


def test_a_rotation_is_one_of_millimetres():
    mask = make_mask(radius=4.0)
    turned = transform_mask(mask, spacing=SPACING, rotation=(0, 0, 30))
    x, y, z = centroid(is_tumour(mask))
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    expected = (cos * x - sin * y, sin * x + cos * y, z)
    assert (np.abs(centroid(is_tumour(turned)) - expected) <= np.array(SPACING) / 2).all()
    assert (turned > 0).sum() == pytest.approx((mask > 0).sum(), rel=0.03)  # a ball stays a ball


def test_the_tumour_moves_with_the_anatomy():
    mask = make_mask()
    both = transform_mask(mask, spacing=SPACING, rotation=(0, 0, 90), shift=(4.0, 0.0, 0.0))
    turned = transform_mask(mask, spacing=SPACING, rotation=(0, 0, 90))
    way = centroid(is_tumour(both)) - centroid(is_tumour(turned))
    assert (np.abs(way - (0, 4, 0)) <= np.array(SPACING) / 2).all()


def test_no_tumour_outside_the_brain():
    mask = make_mask()
    moved = transform_mask(mask, spacing=SPACING, shift=(-9.0, 0.0, 0.0), rotation=(0, 0, 7))
    anatomy = transform_mask(np.where(mask > 0, 4, 0), spacing=SPACING, rotation=(0, 0, 7))
    assert np.array_equal(moved > 0, anatomy > 0)
    assert 0 < is_tumour(moved).sum() < 0.8 * is_tumour(mask).sum()


def test_without_tumour_only_the_anatomy_changes():
    healthy = np.where(make_mask() > 0, 4, 0)
    assert np.array_equal(transform_mask(healthy, spacing=SPACING, shift=(5.0, 0.0, 0.0), scale=1.2), healthy)
    still = {"max_rotation": 0, "flip_probability": 0}
    assert np.array_equal(augment_mask(healthy, generator=generator(), spacing=SPACING, **still), healthy)
    empty = np.zeros(GRID, np.uint8)
    assert np.array_equal(augment_mask(empty, generator=generator(), spacing=SPACING), empty)


def test_other_labels_inside_the_brain_stay():
    mask = make_mask()
    mask[15:17, 13:15, 9:11] = 7
    moved = transform_mask(mask, spacing=SPACING, shift=(-1.0, 0.0, 0.0))
    assert ((moved == 7) == (mask == 7)).all()


def test_the_published_coding_has_its_outside_below_the_brain():
    mask = make_mask()
    coded = np.select([mask == 0, mask == 4], [-1, 0], mask.astype(np.int16))
    changes = {"shift": (3.0, 0.0, 0.0), "scale": 1.1, "rotation": (0, 0, 5)}
    expected = transform_mask(mask, spacing=SPACING, **changes)
    moved = transform_mask(coded, spacing=SPACING, brain_label=0, outside_label=-1, **changes)
    assert np.array_equal(moved, np.select([expected == 0, expected == 4], [-1, 0], expected.astype(np.int16)))


def test_random_changes_keep_their_bounds():
    mask = make_mask((-6.0, 4.0, 1.0), 3.0)
    start = centroid(is_tumour(mask))
    centre = centroid(mask > 0)
    direction = (centre - start) / np.linalg.norm(centre - start)
    still = {"max_rotation": 0, "flip_probability": 0}
    ways, sizes = [], []
    for seed in range(40):
        moved = augment_mask(mask, generator=generator(seed), spacing=SPACING, **still, max_shift=4.0)
        assert set(np.unique(moved)) <= {0, 2, 3, 4}
        assert np.array_equal(moved > 0, mask > 0)
        way = centroid(is_tumour(moved)) - start
        assert np.linalg.norm(way - direction * (way @ direction)) < 1.0  # towards the centre
        ways.append(way @ direction)
        sizes.append(is_tumour(moved).sum() / is_tumour(mask).sum())
    assert -0.5 < min(ways) < 1
    assert 3 < max(ways) < 4.5
    assert 0.8**3 * 0.75 < min(sizes) < 0.8
    assert 1.3 < max(sizes) < 1.2**3 * 1.1


def test_the_tumour_never_passes_the_centre():
    mask = make_mask((-3.0, 0.0, 0.0), 3.0)
    x = [
        centroid(is_tumour(augment_mask(mask, generator=generator(seed), spacing=SPACING, max_shift=100)))[0]
        for seed in range(20)
    ]
    assert max(np.abs(x)) < 3.5  # mirrored or not
    still = {"max_rotation": 0, "flip_probability": 0, "max_shift": 100, "scale_range": (1, 1)}
    x = [
        centroid(is_tumour(augment_mask(mask, generator=generator(s), spacing=SPACING, **still)))[0] for s in range(20)
    ]
    assert -0.6 < max(x) < 0.6
    assert min(x) < -2


def test_the_longest_shift_is_the_papers_share_of_the_brains_width():
    mask = make_mask((-9.0, 0.0, 0.0), 3.0)  # 27 mm wide
    still = {"max_rotation": 0, "flip_probability": 0, "scale_range": (1, 1)}
    moved = [augment_mask(mask, generator=generator(seed), spacing=SPACING, **still) for seed in range(40)]
    ways = [centroid(is_tumour(labels))[0] + 9 for labels in moved]
    assert 0.85 * 27 * 60 / 512 < max(ways) < 27 * 60 / 512 + 0.5


def test_a_flip_comes_as_often_as_asked():
    mask = make_mask()
    still = {"max_rotation": 0, "max_shift": 0, "scale_range": (1, 1)}
    for probability, low, high in ((0.0, 0, 0), (0.5, 8, 22), (1.0, 30, 30)):
        flipped = 0
        for seed in range(30):
            changed = augment_mask(
                mask, generator=generator(seed), spacing=SPACING, flip_probability=probability, **still
            )
            same = np.array_equal(changed, mask)
            assert same != np.array_equal(changed, mask[::-1])
            flipped += not same
        assert low <= flipped <= high


def test_organs_are_only_rotated():
    organs = make_mask()  # labels 1 to 3 are organs here
    still = augment_mask(organs, generator=generator(), spacing=SPACING, kind="organs", max_rotation=0)
    assert np.array_equal(still, organs)
    angles = np.random.default_rng(5).uniform(-8, 8, 3)
    turned = augment_mask(organs, generator=generator(5), spacing=SPACING, kind="organs", max_rotation=8)
    assert np.array_equal(turned, transform_mask(organs, spacing=SPACING, rotation=angles))
    assert not np.array_equal(turned, organs)


def test_a_change_is_a_function_of_the_seed_and_every_mask_takes_as_many_draws():
    mask = make_mask()
    first, again, other = (augment_mask(mask, generator=generator(seed), spacing=SPACING) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    states = []
    for labels, kind in ((mask, "brain"), (np.zeros_like(mask), "brain"), (mask, "organs")):
        stream = generator()
        augment_mask(labels, generator=stream, spacing=SPACING, kind=kind)
        states.append(stream.bit_generator.state)
    assert states[0] == states[1] == states[2]


def test_type_and_container_stay():
    mask = make_mask()
    before = mask.copy()
    changed = augment_mask(torch.from_numpy(mask), generator=generator(1), spacing=SPACING)
    assert changed.dtype == torch.uint8
    expected = augment_mask(mask, generator=generator(1), spacing=SPACING)
    assert expected.dtype == np.uint8
    assert np.array_equal(changed.numpy(), expected)
    assert np.array_equal(mask, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "heart"}, "kind of mask is 'heart'; choose brain or organs"),
        ({"max_rotation": -1}, "largest rotation is -1; give degrees"),
        ({"flip_probability": 2}, "probability of a flip is 2; give a number from 0 to 1"),
        ({"max_shift": -3}, "longest shift is -3; give mm from 0"),
        ({"scale_range": (1.2, 0.8)}, "scales run from 1.2 to 0.8; give two factors"),
        ({"spacing": (1, 1)}, r"spacing is \(1, 1\); give three voxel sizes"),
        ({"brain_label": 9}, "no voxel of the brain label 9 to say where it may lie"),
        ({"outside_label": -1}, "outside label is -1, which uint8 masks cannot hold"),
        ({"labels": np.zeros((4, 4))}, r"shape \(4, 4\) and type float64; give whole numbers \(x, y, z\)"),
    ],
)
def test_mistakes_are_one_sentence(changes, message):
    options = {"labels": make_mask(), "generator": generator(), "spacing": SPACING, **changes}
    with pytest.raises(ValueError, match=message):
        augment_mask(options.pop("labels"), **options)


def test_a_scale_is_above_zero():
    with pytest.raises(ValueError, match=r"scale of the tumour is 0; give a factor above 0"):
        transform_mask(make_mask(), spacing=SPACING, scale=0)
