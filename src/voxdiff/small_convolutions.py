"""Keeps training in bfloat16 on a CPU out of a fault of oneDNN."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_SMALL = 2  # voxels a side
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@contextmanager
def small_convolutions_in_float32(*networks: nn.Module) -> Iterator[None]:
    """Run convolutions of inputs with a side of one or two voxels in 32 bit where autocast on a CPU would not.

    On processors with AVX-512 BF16 and no AMX, the 16-bit gradient of their weights is that of memory which is not theirs
    (torch 2.13). The backward pass belongs inside too: with gradient checkpointing it convolves again. A compiled network
    is compiled anew inside and after it, so that it belongs around the loop and not around each step.

    Args:
        networks: Whose ``nn.Conv…`` modules on the CPU this is about; one whose ``forward`` was replaced already stays
            as it is.
    """
    modules = [module for network in networks for module in network.modules() if _is_meant(module)]
    for module in modules:
        module.forward = functools.partial(_convolve, module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _is_meant(module: nn.Module) -> bool:
    return isinstance(module, _CONVOLUTIONS) and module.weight.device.type == "cpu" and "forward" not in vars(module)


def _convolve(forward: Callable[..., torch.Tensor], images: torch.Tensor, *arguments: Any) -> torch.Tensor:
    if not torch.is_autocast_enabled("cpu") or min(images.shape[2:]) > _SMALL:
        return forward(images, *arguments)
    with torch.autocast("cpu", enabled=False):
        return forward(images.float(), *arguments)
