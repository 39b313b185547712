"""The U-Net of WDM and cWDM (Friedrich et al. 2024): an ADM U-Net without attention on 3D wavelet coefficients."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from torch import nn

from voxdiff.models.base import VolumeModel
from voxdiff.models.layers_3d import ResnetBlock3D, expand_timesteps, nearest_valid_sizes, zero_module

SKIP_MODES = ("additive", "concat")


@dataclass
class WaveletUNet3DOutput(BaseOutput):
    """Output of :class:`WaveletUNet3DModel`.

    Attributes:
        sample: Network prediction ``(batch, out_channels, x, y, z)``.
    """

    sample: torch.Tensor


class DownBlock3D(nn.Module):
    """Residual blocks of one resolution and, except on the last level, a halving block."""

    def __init__(self, in_channels: int, out_channels: int, num_layers: int, add_downsample: bool, **resnet) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (num_layers - 1)
        self.resnets = nn.ModuleList(ResnetBlock3D(width, out_channels, **resnet) for width in widths)
        halving = [ResnetBlock3D(out_channels, out_channels, resample="down", **resnet)] if add_downsample else []
        self.downsamplers = nn.ModuleList(halving)


class MidBlock3D(nn.Module):
    """Two residual blocks at the lowest resolution."""

    def __init__(self, channels: int, **resnet) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock3D(channels, channels, **resnet) for _ in range(2))


class UpBlock3D(nn.Module):
    """Residual blocks that consume one skip each and, except on the last level, a doubling block."""

    def __init__(self, widths: list[tuple[int, int]], add_upsample: bool, **resnet) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock3D(in_width, out_width, **resnet) for in_width, out_width in widths)
        width = widths[-1][1]
        doubling = [ResnetBlock3D(width, width, resample="up", **resnet)] if add_upsample else []
        self.upsamplers = nn.ModuleList(doubling)


class WaveletUNet3DModel(VolumeModel):
    """3D U-Net for wavelet diffusion; with one input and output channel also the plain voxel-space 3D DDPM.

    The defaults are the published 128³ configuration of WDM. cWDM uses ``in_channels=32`` (eight noisy bands and three
    condition volumes of eight bands) and ``skip_mode="concat"``; the 256³ configuration has a sixth width of 256.

    Args:
        in_channels: Input channels: 8 per wavelet-transformed volume, noisy ones first, then the conditions.
        out_channels: Output channels, 8 per generated volume.
        block_out_channels: Width of each level. Every grid size must be divisible by ``2 ** (levels - 1)``.
        layers_per_block: Residual blocks per level in the encoder; the decoder has one more.
        skip_mode: ``"additive"`` averages the decoder with the skip (WDM), ``"concat"`` concatenates them (cWDM).
        norm_num_groups: Groups of the group norms.
        norm_eps: Epsilon of the group norms.

    Raises:
        ValueError: On an unknown ``skip_mode`` or a width that ``norm_num_groups`` does not divide.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ResnetBlock3D"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 8,
        out_channels: int = 8,
        block_out_channels: tuple = (64, 128, 128, 256, 256),
        layers_per_block: int = 2,
        skip_mode: str = "additive",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if skip_mode not in SKIP_MODES:
            raise ValueError(f"skip_mode is {skip_mode!r}; allowed are {', '.join(SKIP_MODES)}.")
        if any(width % norm_num_groups for width in block_out_channels):
            raise ValueError(
                f"block_out_channels {tuple(block_out_channels)} cannot be split into {norm_num_groups} groups; choose "
                "norm_num_groups so that it divides every width."
            )
        base, last = block_out_channels[0], block_out_channels[-1]
        num_levels = len(block_out_channels)
        resnet = {"temb_channels": 4 * base, "groups": norm_num_groups, "eps": norm_eps}

        self.time_proj = Timesteps(base, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(base, 4 * base)
        self.conv_in = nn.Conv3d(in_channels, base, 3, padding=1)

        self.down_blocks = nn.ModuleList()
        skip_widths, width = [base], base
        for level, out_width in enumerate(block_out_channels):
            halves = level < num_levels - 1
            self.down_blocks.append(DownBlock3D(width, out_width, layers_per_block, halves, **resnet))
            skip_widths += [out_width] * (layers_per_block + halves)
            width = out_width

        self.mid_block = MidBlock3D(last, **resnet)

        self.up_blocks = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(block_out_channels))):
            widths = []
            for _ in range(layers_per_block + 1):
                skip_width = skip_widths.pop()
                # An averaged skip fixes the width of the block that receives it: each block prepares the next skip.
                next_skip_width = skip_widths[-1] if skip_widths else base
                in_width = skip_width if skip_mode == "additive" else width + skip_width
                width = next_skip_width if skip_mode == "additive" else level_width
                widths.append((in_width, width))
            self.up_blocks.append(UpBlock3D(widths, add_upsample=level > 0, **resnet))

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, base, eps=norm_eps)
        self.conv_out = zero_module(nn.Conv3d(base, out_channels, 3, padding=1))
        self.gradient_checkpointing = False

    @property
    def size_divisor(self) -> int:
        """What every size of the network's input grid must be divisible by."""
        return 2 ** (len(self.config["block_out_channels"]) - 1)

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | int, return_dict: bool = True
    ) -> WaveletUNet3DOutput | tuple[torch.Tensor]:
        """Predict what the scheduler's ``prediction_type`` says.

        Args:
            sample: ``(batch, in_channels, x, y, z)``, x, y and z divisible by :attr:`size_divisor`.
            timestep: Diffusion time in ``[0, 1000)``, one number or one a sample.
            return_dict: Whether to return a :class:`WaveletUNet3DOutput` instead of a tuple.

        Raises:
            ValueError: If the channels or the grid do not fit the network.
        """
        self._check_sample(sample)
        temb = self._embed_time(timestep, sample)

        hidden_states = self.conv_in(sample)
        skips = [hidden_states]
        for down_block in cast("Iterable[DownBlock3D]", self.down_blocks):
            for resnet in [*down_block.resnets, *down_block.downsamplers]:
                hidden_states = self._run(resnet, hidden_states, temb)
                skips.append(hidden_states)
        for resnet in self.mid_block.resnets:
            hidden_states = self._run(resnet, hidden_states, temb)
        for up_block in cast("Iterable[UpBlock3D]", self.up_blocks):
            for resnet in up_block.resnets:
                hidden_states = self._run(resnet, self._join(hidden_states, skips.pop()), temb)
            for resnet in up_block.upsamplers:
                hidden_states = self._run(resnet, hidden_states, temb)

        output = self.conv_out(F.silu(self.conv_norm_out(hidden_states)))
        return WaveletUNet3DOutput(sample=output) if return_dict else (output,)

    def _check_sample(self, sample: torch.Tensor) -> None:
        divisor = self.size_divisor
        if sample.ndim != 5 or sample.shape[1] != self.config["in_channels"]:
            raise ValueError(
                f"The U-Net got a tensor of shape {tuple(sample.shape)}; it takes (batch, {self.config['in_channels']}, "
                "x, y, z)."
            )
        for axis, size in zip("xyz", sample.shape[2:], strict=True):
            if size % divisor:
                raise ValueError(
                    f"The network grid is {tuple(sample.shape[2:])}, but {len(self.config['block_out_channels'])} levels "
                    f"need every size divisible by {divisor}: use {nearest_valid_sizes(size, divisor)} along {axis}."
                )

    def _embed_time(self, timestep: torch.Tensor | float | int, sample: torch.Tensor) -> torch.Tensor:
        timesteps = self.time_proj(expand_timesteps(timestep, sample))
        return F.silu(self.time_embedding(timesteps.to(sample.dtype)))

    def _run(self, resnet: nn.Module, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(resnet, hidden_states, temb)
        return resnet(hidden_states, temb)

    def _join(self, hidden_states: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        if self.config["skip_mode"] == "additive":
            return (hidden_states + skip) / 2
        return torch.cat([hidden_states, skip], dim=1)
