"""Keeps training in bfloat16 on a CPU out of a fault of oneDNN."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_SMALL = 2  # voxels a side, whatever the kernel
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@contextmanager
def small_convolutions_in_float32(*networks: nn.Module) -> Iterator[None]:
    """Run convolutions of inputs smaller than the kernel in 32 bit where autocast on a CPU would not.

    On processors with AVX-512 BF16 and no AMX, the 16-bit gradients of their weights are those of memory which is not theirs
    (torch 2.13, oneDNN, padded convolutions). Inputs with a side of one or two voxels count as small for every kernel.

    The backward pass belongs inside too: with gradient checkpointing it convolves again. So does the whole loop: a compiled
    network is compiled anew inside. Copies of a network that are made inside stay as they are inside.

    Args:
        networks: Whose ``nn.Conv…`` modules this is about, those with weights in float32 on the CPU; one whose ``forward``
            was replaced already stays as it is.
    """
    modules = {module: None for network in networks for module in network.modules() if _is_meant(module)}
    for module in modules:
        module.forward = functools.partial(_convolve, module, module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _is_meant(module: nn.Module) -> bool:
    if not isinstance(module, _CONVOLUTIONS) or "forward" in vars(module):
        return False
    return module.weight.device.type == "cpu" and module.weight.dtype == torch.float32


def _convolve(
    module: Any, forward: Callable[..., torch.Tensor], input: torch.Tensor, *arguments: Any, **options: Any
) -> torch.Tensor:
    if not torch.is_autocast_enabled("cpu") or not _is_small(input, module.kernel_size):
        return forward(input, *arguments, **options)
    with torch.autocast("cpu", enabled=False):
        return forward(input.float(), *arguments, **options)


def _is_small(images: torch.Tensor, kernel_size: tuple[int, ...]) -> bool:
    sides = images.shape[-len(kernel_size) :]
    return any(side < max(kernel, _SMALL + 1) for side, kernel in zip(sides, kernel_size, strict=True))
