"""Exponential moving average of a model's weights."""

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """Keeps an averaged copy of a model.

    The decay warms up as ``min(decay, (1 + step) / (10 + step))``, so that the first steps are forgotten. The average
    is a function of the weights and the step only: every process of a run holds the same one, and the copy's weights
    with the step are all that a checkpoint needs. Buffers are copied.

    Args:
        model: Model to average; its weights are the initial average.
        decay: Decay once warmed up.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards ``model`` after optimiser step ``step`` (the first is 1)."""
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)
        for average, value in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(value)
