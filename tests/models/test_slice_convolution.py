import torch

from voxdiff.models.slice_convolution import SliceConvolution, find_neighbours

POSITIONS = torch.tensor([[4.0, 0.0, 1.5, 9.0], [2.0, 3.0, 1.0, 0.0]])


def test_neighbours_are_the_next_slots_of_the_same_sample():
    found = find_neighbours(POSITIONS)
    present = found.present.bool()
    assert present[:, 0].tolist() == [True, False, True, True, True, True, True, False]
    assert present[:, 1].tolist() == [True, True, True, False, True, False, True, True]
    assert found.below[present[:, 0]].tolist() == [2, 1, 0, 6, 4, 7]
    assert found.above[present[:, 1]].tolist() == [3, 2, 0, 5, 4, 6]
    expected = torch.tensor([[2.5, 5.0], [0, 1.5], [1.5, 2.5], [5, 0], [1, 1], [1, 0], [1, 1], [0, 1]])
    torch.testing.assert_close(found.distances, expected.log1p())


def test_padding_is_nobodys_neighbour():
    valid = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1]])
    found = find_neighbours(POSITIONS, valid)
    assert found.below[0] == 1 and found.above[1] == 0 and found.above[2] == 0
    assert not found.present[4, 1]


def test_a_lone_slice_has_no_neighbour_and_stays():
    layer = SliceConvolution(4)
    torch.nn.init.normal_(layer.conv.weight)
    hidden_states = torch.randn(2, 4, 3, 5)
    assert torch.equal(layer(hidden_states, find_neighbours(torch.zeros(2, 1))), hidden_states)


def test_each_side_has_its_own_weights_which_depend_on_the_distance():
    layer = SliceConvolution(4)
    hidden_states = torch.randn(2, 4, 3, 5)
    assert torch.equal(layer(hidden_states, find_neighbours(torch.tensor([[0.0, 1.0]]))), hidden_states)
    torch.nn.init.normal_(layer.conv.weight)
    results = [
        layer(hidden_states, find_neighbours(torch.tensor([places])))
        for places in ([0.0, 1.0], [5.0, 6.0], [1.0, 0.0], [0.0, 3.0])
    ]
    near, moved, swapped, far = results
    torch.testing.assert_close(near, moved)
    assert all((near - other).abs().amax(dim=(1, 2, 3)).min() > 1e-3 for other in (swapped, far))


def test_only_the_two_neighbours_count():
    layer = SliceConvolution(4)
    torch.nn.init.normal_(layer.conv.weight)
    hidden_states = torch.randn(4, 4, 3, 5).requires_grad_()
    output = layer(hidden_states, find_neighbours(torch.tensor([[0.0, 2.0, 3.0, 7.0]])))
    (gradient,) = torch.autograd.grad(output[3].sum(), hidden_states)
    assert (gradient.abs().sum(dim=(1, 2, 3)) > 0).tolist() == [False, False, True, True]
