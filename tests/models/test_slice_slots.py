import numpy as np
import pytest
import torch

from voxdiff.models.slice_slots import check_slots, interpolate_known, interpolation_weights, join_known, target_slots

KNOWN = torch.tensor([[1, 0, 0], [0, 1, 1]])
VALID = torch.tensor([[1, 1, 0], [1, 1, 1]])


def test_targets_are_neither_known_nor_padding():
    assert target_slots(KNOWN, None).tolist() == [1, 2, 3]
    assert target_slots(None, VALID).tolist() == [0, 1, 3, 4, 5]
    assert target_slots(KNOWN, VALID).tolist() == [1, 3]
    assert target_slots(None, None) is None


def test_a_given_number_of_targets_is_checked():
    assert target_slots(KNOWN, VALID, 2).tolist() == [1, 3]
    for wrong in (1, 3):
        with pytest.raises(RuntimeError, match="num_targets is not the number of slots"):
            target_slots(KNOWN, VALID, wrong)


def test_each_slot_holds_its_slice_and_what_it_is():
    sample, known_slices = torch.zeros(2, 1, 2, 2, 3), torch.ones(2, 1, 2, 2, 3)
    joined = join_known(sample, known_slices, KNOWN)
    assert joined.shape == (2, 2, 2, 2, 3)
    for channel in joined.unbind(1):
        assert torch.equal(channel, KNOWN[:, None, None, :].expand(2, 2, 2, 3).float())
    assert torch.equal(join_known(sample + 3, None, None)[:, 0], sample[:, 0] + 3)
    assert not join_known(sample, None, None)[:, 1].any()


def test_slices_are_interpolated_linearly_and_repeated_beyond_the_last():
    positions, known = torch.tensor([[0.0, 4, 1, 2.5, 7, -1]]), torch.tensor([[1, 1, 0, 0, 0, 0]])
    weights, distance = interpolation_weights(positions, known)
    assert weights[0, :, :2].tolist() == [[1, 0], [0, 1], [0.75, 0.25], [0.375, 0.625], [0, 1], [1, 0]]
    assert not weights[0, :, 2:].any()
    assert distance.tolist() == [[0, 0, 1, 1.5, 3, 1]]
    weights, distance = interpolation_weights(positions, torch.zeros_like(known))
    assert not weights.any() and distance.isinf().all()


def test_interpolation_agrees_with_numpy_at_any_positions():
    random = torch.Generator().manual_seed(0)
    positions = 40 * torch.rand(1, 9, generator=random)
    known = torch.arange(9)[None] % 2 == 0
    slices = torch.randn(1, 1, 2, 2, 9, generator=random)
    places = positions[0, ::2].numpy()
    order = places.argsort()
    found = interpolate_known(torch.zeros_like(slices), positions, slices, known)
    for values, pixel in zip(found[0, 0].flatten(0, 1), slices[0, 0].flatten(0, 1), strict=True):
        expected = np.interp(positions[0].numpy(), places[order], pixel[::2].numpy()[order])
        np.testing.assert_allclose(values.numpy(), expected, atol=1e-5)
    nearest = np.abs(positions[0].numpy()[:, None] - places).min(axis=1)
    np.testing.assert_allclose(found[0, 1, 1, 1].numpy(), 1 / (1 + nearest), rtol=1e-6)
    nothing = interpolate_known(torch.ones_like(slices), positions, None, None)
    assert nothing.shape == found.shape and not nothing.any()
    assert torch.equal(interpolate_known(slices, positions, slices, torch.zeros_like(known)), nothing)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"known": None}, "missing known, which says where they are; give known_slices and known, or neither"),
        ({"known_slices": None}, "missing known_slices, the slices themselves"),
        ({"positions": torch.zeros(3)}, r"positions of shape \(3,\); pass \(2, 3\)"),
        ({"known": KNOWN[:, :2]}, r"known of shape \(2, 2\); pass \(2, 3\)"),
        ({"valid": VALID[:1]}, r"valid of shape \(1, 3\); pass \(2, 3\)"),
        ({"known_slices": torch.zeros(2, 1, 4, 4, 2)}, r"known slices have the shape \(2, 1, 4, 4, 2\)"),
    ],
)
def test_what_does_not_fit_the_slots_raises(changes, message):
    slots = {"sample": torch.zeros(2, 1, 4, 4, 3), "known_slices": torch.zeros(2, 1, 4, 4, 3)}
    slots |= {"positions": torch.arange(6.0).view(2, 3), "known": KNOWN, "valid": VALID}
    check_slots(**slots)
    with pytest.raises(ValueError, match=message) as error:
        check_slots(**{**slots, **changes})
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
