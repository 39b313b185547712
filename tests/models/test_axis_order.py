import pytest
import torch

from voxdiff.models.axis_order import AXIS_ORDERS, check_axis_order, from_network, to_network


def test_the_network_sees_z_first():
    volume = torch.arange(24).view(1, 1, 2, 3, 4)
    turned = to_network(volume, "zxy")
    assert turned.shape == (1, 1, 4, 2, 3)
    assert turned[0, 0, 3, 1, 2] == volume[0, 0, 1, 2, 3]
    assert to_network(volume, "xyz").equal(volume)


@pytest.mark.parametrize("axis_order", AXIS_ORDERS)
def test_the_way_back_is_the_inverse(axis_order):
    volume = torch.randn(2, 3, 4, 5, 6)
    assert from_network(to_network(volume, axis_order), axis_order).equal(volume)


def test_another_order_raises():
    with pytest.raises(ValueError, match="'zyx'; allowed are xyz, zxy"):
        check_axis_order("zyx")
