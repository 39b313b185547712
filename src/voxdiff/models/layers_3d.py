"""Blocks that the 3D networks share."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


def zero_module(module: nn.Module) -> nn.Module:
    """Set every parameter of a module to zero, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def nearest_valid_sizes(size: int, factor: int) -> str:
    """Describe the multiples of ``factor`` around ``size`` for an error message, such as ``"32 or 48"``."""
    below = size // factor * factor
    return f"{below} or {below + factor}" if below else f"{factor}"


def expand_timesteps(timestep: torch.Tensor | float | int, sample: torch.Tensor) -> torch.Tensor:
    """One timestep a sample ``(batch,)``, on the sample's device.

    Raises:
        ValueError: If there are neither one nor as many as samples.
    """
    timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1)
    if len(timesteps) not in (1, len(sample)):
        raise ValueError(
            f"The network got {len(timesteps)} timesteps for a batch of {len(sample)}; give one, or one a sample."
        )
    return timesteps.expand(len(sample))


def halve(hidden_states: torch.Tensor) -> torch.Tensor:
    """Average every 2x2x2 cell. PyTorch's pooling has no 16-bit kernel on a CPU, hence the detour in float32."""
    if hidden_states.device.type == "cpu" and hidden_states.dtype != torch.float64:
        return F.avg_pool3d(hidden_states.float(), 2).to(hidden_states.dtype)
    return F.avg_pool3d(hidden_states, 2)


class CheckpointedBlock(nn.Module):
    """Block whose layers are computed again in the backward pass once the model enables gradient checkpointing."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable

    def _run(self, layer: nn.Module, *inputs):
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(layer, *inputs)
        return layer(*inputs)


class ResnetBlock3D(nn.Module):
    """Residual block of the ADM U-Net in three dimensions (Dhariwal & Nichol 2021, appendix A).

    Group norm, SiLU, [resample], 3x3x3 convolution, plus the projected time embedding, then group norm, SiLU and a
    zero-initialised 3x3x3 convolution. A resampling block halves (average) or doubles (nearest) both of its branches.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; a 1x1x1 convolution joins the branches when they differ.
        temb_channels: Width of the time embedding.
        groups: Groups of both group norms.
        eps: Epsilon of both group norms.
        resample: ``None``, ``"down"`` or ``"up"``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temb_channels: int,
        *,
        groups: int = 32,
        eps: float = 1e-5,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = zero_module(nn.Conv3d(out_channels, out_channels, 3, padding=1))
        self.conv_shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, in_channels, x, y, z)`` and an activated embedding ``(batch, temb_channels)`` to the output."""
        shortcut = self._resample(hidden_states)
        hidden_states = self._resample(F.silu(self.norm1(hidden_states)))
        hidden_states = self.conv1(hidden_states) + self.time_emb_proj(temb)[:, :, None, None, None]
        hidden_states = self.conv2(F.silu(self.norm2(hidden_states)))
        if self.conv_shortcut is not None:
            shortcut = self.conv_shortcut(shortcut)
        return shortcut + hidden_states

    def _resample(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.resample == "down":
            return halve(hidden_states)
        if self.resample == "up":
            return F.interpolate(hidden_states, scale_factor=2.0, mode="nearest")
        return hidden_states
