"""Batch norm over the samples of all processes, on any device (torch's own is for GPUs only)."""

import torch
from torch import nn
from torch.distributed.nn.functional import all_reduce


class SharedBatchNorm3d(nn.BatchNorm3d):
    """Batch norm whose statistics in training are those of all processes' batches, which must be of one size."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalise ``(batch, channels, x, y, z)``."""
        if not self.training:
            return super().forward(hidden_states)
        values = hidden_states.float()
        mean = _mean_over_processes(values)
        deviations = values - mean
        variance = _mean_over_processes(deviations.square())
        self._remember(mean.detach().flatten(), variance.detach().flatten(), values.numel() // values.shape[1])
        weight, bias = (parameter.view(1, -1, 1, 1, 1) for parameter in (self.weight, self.bias))
        return (deviations * torch.rsqrt(variance + self.eps) * weight + bias).to(hidden_states.dtype)

    def _remember(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        count *= torch.distributed.get_world_size()
        self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)  # type: ignore[union-attr, arg-type]
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]


def share_batch_norms(network: nn.Module) -> None:
    """Turn the batch norms of a network into shared ones; its tensors and their names stay."""
    for module in network.modules():
        if type(module) is nn.BatchNorm3d:
            module.__class__ = SharedBatchNorm3d


def _mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    local = values.mean(dim=(0, 2, 3, 4), keepdim=True)
    return all_reduce(local) / torch.distributed.get_world_size()
