"""Stops a run at the first non-finite number and names where it came from."""

from collections.abc import Callable

import torch
from torch import nn


def first_nonfinite_layer(model: nn.Module, forward: Callable[[], object]) -> str:
    """Name the first layer whose output is not finite when ``forward`` runs again, or else the first bad gradient.

    Args:
        model: The model, its gradients still in place.
        forward: Runs the failing forward pass once more.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not found and isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"the output of layer {found[0]!r}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"the gradient of {name!r}"
    return "the loss"
