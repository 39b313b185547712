"""The opponent in adversarial training: a second module with its own optimiser, trained in the same loop."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from torch import nn

from voxdiff.training.arguments import TrainingArguments
from voxdiff.training.guard import first_nonfinite_layer
from voxdiff.training.shared_batch_norm import share_batch_norms


class AdversarialObjective(Protocol):
    """An objective that the model is trained on against an ``adversary``."""

    adversary: Any

    def adversary_loss(self, adversary: nn.Module) -> torch.Tensor | None:
        """Loss of the adversary, possibly wrapped by Accelerate, on the objective's last batch; None before it plays."""


class Adversary:
    """Trains the adversary of an objective after the model, on the same batch and at the model's learning rate.

    Published runs let the two take turns, a batch each; on the same batch the reconstruction is computed once for both.
    Its batch norms see the whole batch of all processes.

    Args:
        accelerator: The run's.
        objective: Holds the adversary and its loss.
        args: The run's arguments.
        optimizer_settings: Of its AdamW.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        objective: AdversarialObjective,
        args: TrainingArguments,
        optimizer_settings: dict[str, Any],
    ) -> None:
        self.accelerator = accelerator
        self.objective = objective
        self.max_grad_norm = args.max_grad_norm or math.inf
        self.optimizer_settings = optimizer_settings
        self.network = objective.adversary.to(accelerator.device).train()
        if args.channels_last:
            self.network.to(memory_format=torch.channels_last_3d)
        if accelerator.num_processes > 1:
            share_batch_norms(self.network)
        optimizer = torch.optim.AdamW(self.network.parameters(), **optimizer_settings)
        self.model, self.optimizer = accelerator.prepare(self.network, optimizer)

    def optimise(self, learning_rate: float) -> None:
        """One micro-batch; with the last one of a step, the optimiser's step.

        Raises:
            FloatingPointError: At the first non-finite gradient.
        """
        loss = self.objective.adversary_loss(self.model)
        if loss is None:
            return
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            self._require_finite(self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm))
        for group in self.optimizer.param_groups:  # a checkpoint brings its own, this run's count
            group.update({**self.optimizer_settings, "lr": learning_rate})
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _require_finite(self, norm: torch.Tensor) -> None:
        scaler = self.accelerator.scaler
        # fp16 meets infinities on its way to a loss scale that fits, and skips such steps.
        if torch.isfinite(norm) or (scaler is not None and scaler.get_scale() >= 1):
            return
        compute_loss = cast(Callable[[], torch.Tensor], partial(self.objective.adversary_loss, self.network))
        where = first_nonfinite_layer(self.network, compute_loss)
        raise FloatingPointError(
            f"Training stopped: in the adversary, {where or 'the norm of the gradients'} is not finite; resume the last "
            "checkpoint with a lower learning rate, or look for extreme values in the data."
        )
