"""Keeps training in bfloat16 on a CPU out of a fault of oneDNN."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@contextmanager
def small_convolutions_in_float32(*networks: nn.Module) -> Iterator[None]:
    """Run convolutions of inputs smaller than the kernel in 32 bit where autocast on a CPU would not.

    On processors with AVX-512 BF16 and no AMX, the 16-bit gradients of their weights are those of memory which is not theirs
    (torch 2.13, oneDNN, padded convolutions). Of transposed convolutions also those with an output smaller than the kernel
    are meant. Kernels wider than 5 are not made safe: with 7 and a stride of 2 even 32 bit writes over other memory.

    The backward pass belongs inside too: with gradient checkpointing it convolves again. So does the whole loop: a compiled
    network is compiled anew inside. Copies of a network that are made inside stay as they are inside.

    Args:
        networks: Whose ``nn.Conv…`` modules this is about, those with weights in float32 on the CPU; one whose ``forward``
            was replaced already stays as it is.
    """
    modules = {module for network in networks for module in network.modules() if _is_meant(module)}
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
    if not torch.is_autocast_enabled("cpu") or not _is_small(module, input):
        return forward(input, *arguments, **options)
    with torch.autocast("cpu", enabled=False):
        return forward(input.float(), *arguments, **options)


def _is_small(module: Any, images: torch.Tensor) -> bool:
    kernel = module.kernel_size
    sides = images.shape[-len(kernel) :]
    if module.transposed:
        grown = zip(sides, kernel, module.stride, module.padding, strict=True)
        outputs = [(side - 1) * stride - 2 * padding + size for side, size, stride, padding in grown]
        sides = torch.Size(map(min, sides, outputs))
    return any(side < size for side, size in zip(sides, kernel, strict=True))
