"""Names the layer where a non-finite number first appeared."""

from collections.abc import Callable

import torch
from torch import nn


def first_nonfinite_layer(model: nn.Module, compute_loss: Callable[[], torch.Tensor]) -> str | None:
    """Run a failing pass again and say where the first number appears that is not finite; None if all are finite.

    Outputs are looked at in the order of the forward pass, then the loss, then the gradients in the order of the
    backward pass. The gradients of the model are lost.

    Args:
        model: The model.
        compute_loss: Runs the pass and returns the loss.
    """
    order: dict[str, nn.Module] = {}
    bad: list[str] = []

    def watch(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            order[name] = module
            if isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                bad.append(name)

        return hook

    layers = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(watch(name, module)) for name, module in layers]
    try:
        loss = compute_loss()
    finally:
        for handle in handles:
            handle.remove()
    if bad:
        return f"the output of layer {bad[0]!r}"
    if not torch.isfinite(loss):
        return "the loss, but no layer's output,"
    model.zero_grad()
    loss.backward()
    for name, module in reversed(order.items()):
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        if not all(torch.isfinite(gradient).all() for gradient in gradients):
            return f"the gradient of layer {name!r}"
    return None
