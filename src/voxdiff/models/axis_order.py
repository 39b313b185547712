"""Turns tensors between x, y, z, in which everything public is, and the axis order that a network was trained in."""

import torch

AXIS_ORDERS = ("xyz", "zxy")


def check_axis_order(axis_order: str) -> None:
    """Raise ValueError unless the order is one of :data:`AXIS_ORDERS`."""
    if axis_order not in AXIS_ORDERS:
        raise ValueError(f"axis_order is {axis_order!r}; allowed are {', '.join(AXIS_ORDERS)}.")


def to_network(tensor: torch.Tensor, axis_order: str) -> torch.Tensor:
    """View ``(batch, channels, x, y, z)`` in the network's order, for ``"zxy"`` as ``(batch, channels, z, x, y)``."""
    return tensor.permute(0, 1, *(2 + "xyz".index(axis) for axis in axis_order))


def from_network(tensor: torch.Tensor, axis_order: str) -> torch.Tensor:
    """Inverse of :func:`to_network`."""
    return tensor.permute(0, 1, *(2 + axis_order.index(axis) for axis in "xyz"))
