"""The U-Net of GEM-3D (Zhu et al. 2024, arXiv 2403.12852): a 2D U-Net with layers along the slices of a window."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from torch import nn

from voxdiff.models.base import VolumeModel
from voxdiff.models.layers_3d import expand_timesteps, nearest_valid_sizes
from voxdiff.models.layers_informed_slice import (
    InformedSliceDownBlock,
    InformedSliceMidBlock,
    InformedSliceUpBlock,
    SliceConv,
)
from voxdiff.models.unet_widths import unet_widths

# What the spatial part computes beyond its own configuration, in the words of UNet2DModel.
SLICE_MODEL_SETTINGS = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attn_norm_num_groups": None,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
SHARED_SETTINGS = (
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "attention_head_dim",
    "norm_num_groups",
    "norm_eps",
)


@dataclass
class InformedSliceUNetOutput(BaseOutput):
    """Output of :class:`InformedSliceUNetModel`.

    Attributes:
        sample: Network prediction ``(batch, out_channels, x, y, slices)``.
    """

    sample: torch.Tensor


class InformedSliceUNetModel(VolumeModel):
    """Noise predictor for a window of consecutive axial slices, of any number of slices.

    The spatial part has the parameter names of diffusers' ``UNet2DModel`` (the slice-wise model of GEM-3D's first
    stage) and works on each slice alone. A convolution along the slices follows each of its convolutions, attention
    over the slices follows each of its attentions (volumetric tuning, second stage); both are the identity at
    initialisation. The defaults are the published network. With ``in_channels=8`` it is the paper's baseline
    Make-A-Volume, which has no informed slice. In ``torch.channels_last`` the volumetric layers copy least.

    Args:
        in_channels: Channels of the input: noisy latent, latent of the mask, latent of the informed slice.
        out_channels: Channels of the prediction.
        block_out_channels: Width of each level; x and y must be divisible by ``2 ** (levels - 1)``.
        layers_per_block: Residual blocks of a level in the encoder; the decoder has one more.
        attention_levels: Whether a level attends; the middle always does.
        attention_head_dim: Width of an attention head.
        norm_num_groups: Groups of the group norms.
        norm_eps: Epsilon of the group norms.
        known_slice_indicator: Whether the network is told which slices of the window are known.
        window: Number of slices of a window in training.

    Raises:
        ValueError: On settings that contradict each other; the sentence names them.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["InformedSliceResnetBlock", "InformedSliceAttention"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 12,
        out_channels: int = 4,
        block_out_channels: tuple = (224, 448, 672, 896),
        layers_per_block: int = 2,
        attention_levels: tuple = (False, True, True, True),
        attention_head_dim: int = 32,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        known_slice_indicator: bool = False,
        window: int = 16,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        widths, base, last = tuple(block_out_channels), block_out_channels[0], len(block_out_channels) - 1
        block: dict[str, Any] = {"temb_channels": 4 * base, "head_dim": attention_head_dim}
        block |= {"groups": norm_num_groups, "eps": norm_eps}

        self.time_proj = Timesteps(base, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(base, 4 * base)
        self.conv_in = nn.Conv2d(in_channels, base, 3, padding=1)
        if known_slice_indicator:
            self.conv_in_known = nn.Conv2d(1, base, 3, padding=1, bias=False)
            nn.init.zeros_(self.conv_in_known.weight)
        self.conv_in_vol = SliceConv(base)

        encoder, decoder = unet_widths(widths, layers_per_block)
        self.down_blocks = nn.ModuleList(
            InformedSliceDownBlock(pairs, attentions=layers_per_block * attends, add_downsample=level < last, **block)
            for level, (pairs, attends) in enumerate(zip(encoder, attention_levels, strict=True))
        )
        self.mid_block = InformedSliceMidBlock([(widths[-1], widths[-1])] * 2, attentions=1, **block)
        self.up_blocks = nn.ModuleList(
            InformedSliceUpBlock(pairs, attentions=(layers_per_block + 1) * attends, add_upsample=level < last, **block)
            for level, (pairs, attends) in enumerate(zip(decoder, reversed(attention_levels), strict=True))
        )

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, base, eps=norm_eps)
        self.conv_out = nn.Conv2d(base, out_channels, 3, padding=1)
        self.conv_out_vol = SliceConv(out_channels)

    @classmethod
    def from_slice_model(
        cls, unet: UNet2DModel, *, known_slice_indicator: bool = False, window: int = 16
    ) -> "InformedSliceUNetModel":
        """Add volumetric layers to a slice-wise model, for the paper's volumetric tuning.

        They are the identity, and the indicator's weights are zero: a window gives what ``unet`` gives for its slices.
        The result is in float32 on the device of ``unet``.

        Args:
            unet: Model of single slices, with the channels of :class:`InformedSliceUNetModel`.
            known_slice_indicator: Whether the network is told which slices of the window are known.
            window: Number of slices of a window in the coming training.

        Raises:
            ValueError: If ``unet`` computes something else than the spatial part of this class.
        """
        model = cls(**_shared_config(unet.config), known_slice_indicator=known_slice_indicator, window=window)
        added = {name: tensor for name, tensor in model.state_dict().items() if is_volumetric(name)}
        model.load_state_dict(unet.state_dict() | added)
        return model.to(unet.device)

    @property
    def size_divisor(self) -> int:
        """What the latent's x and y must be divisible by; any number of slices will do."""
        return 2 ** (len(self.config["block_out_channels"]) - 1)

    def volumetric_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters that volumetric tuning trains: all that the slice-wise model has not."""
        return (parameter for name, parameter in self.named_parameters() if is_volumetric(name))

    def freeze_spatial(self) -> None:
        """Exclude the slice-wise model's parameters from training, the group norms that attention shares among them."""
        self.requires_grad_(False)
        for parameter in self.volumetric_parameters():
            parameter.requires_grad_(True)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        *,
        known: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> InformedSliceUNetOutput | tuple[torch.Tensor]:
        """Predict what the scheduler's ``prediction_type`` says.

        Args:
            sample: ``(batch, in_channels, x, y, slices)``, x and y divisible by :attr:`size_divisor`.
            timestep: Diffusion time in ``[0, 1000)``, one number or one a window.
            known: ``(batch, slices)``, 1 or True for the known slices; with ``known_slice_indicator`` only.
            return_dict: Whether to return an :class:`InformedSliceUNetOutput` instead of a tuple.

        Raises:
            ValueError: If the sample does not fit the network, or ``known`` is missing, unexpected or misshaped.
        """
        self._check_inputs(sample, known)
        batch, slices = sample.shape[0], sample.shape[-1]
        temb = self._embed_time(timestep, sample).repeat_interleave(slices, dim=0)

        hidden_states = self.conv_in(sample.permute(0, 4, 1, 2, 3).flatten(0, 1))
        if known is not None:
            indicator = known.to(hidden_states).reshape(-1, 1, 1, 1).expand(-1, 1, *sample.shape[2:4])
            hidden_states = hidden_states + self.conv_in_known(indicator)
        hidden_states = self.conv_in_vol(hidden_states, slices)

        maps = [hidden_states]
        for down_block in self.down_blocks:
            hidden_states, level_maps = down_block(hidden_states, temb, slices)
            maps += level_maps
        hidden_states = self.mid_block(hidden_states, temb, slices)
        for up_block in self.up_blocks:
            split = len(maps) - self.config["layers_per_block"] - 1
            hidden_states = up_block(hidden_states, maps[split:], temb, slices)
            maps = maps[:split]

        output = self.conv_out_vol(self.conv_out(F.silu(self.conv_norm_out(hidden_states))), slices)
        output = output.unflatten(0, (batch, slices)).permute(0, 2, 3, 4, 1)
        return InformedSliceUNetOutput(sample=output) if return_dict else (output,)

    def _embed_time(self, timestep: torch.Tensor | float | int, sample: torch.Tensor) -> torch.Tensor:
        timesteps = self.time_proj(expand_timesteps(timestep, sample))
        return F.silu(self.time_embedding(timesteps.to(sample.dtype)))

    def _check_inputs(self, sample: torch.Tensor, known: torch.Tensor | None) -> None:
        channels, divisor = self.config["in_channels"], self.size_divisor
        if sample.ndim != 5 or sample.shape[1] != channels or sample.shape[-1] == 0:
            raise ValueError(
                f"The U-Net got a tensor of shape {tuple(sample.shape)}; it takes (batch, {channels}, x, y, slices)."
            )
        for axis, size in zip("xy", sample.shape[2:4], strict=True):
            if size == 0 or size % divisor:
                raise ValueError(
                    f"The slices are {tuple(sample.shape[2:4])}, but {len(self.config['block_out_channels'])} levels need "
                    f"x and y divisible by {divisor}: use {nearest_valid_sizes(size, divisor)} along {axis}."
                )
        window = (sample.shape[0], sample.shape[-1])
        if not self.config["known_slice_indicator"]:
            if known is not None:
                raise ValueError(
                    "known was given to a network without an indicator of known slices; leave it out, or train one with "
                    "known_slice_indicator=True."
                )
        elif known is None or tuple(known.shape) != window:
            received = "no known" if known is None else f"known of shape {tuple(known.shape)}"
            raise ValueError(
                f"The network has an indicator of known slices, but got {received}; pass {window}, one value a slice, all "
                "zero when none is known."
            )


def is_volumetric(name: str) -> bool:
    """Whether a parameter's name is of a layer that the slice-wise model has not."""
    return any(part == "vol" or part.endswith("_vol") or part == "conv_in_known" for part in name.split("."))


def _shared_config(config: Any) -> dict[str, Any]:
    """Turn a UNet2DModel's config into what describes the same spatial part here; raise ValueError if nothing does."""
    attention_levels = tuple(block == "AttnDownBlock2D" for block in config["down_block_types"])
    required = SLICE_MODEL_SETTINGS | {
        "down_block_types": tuple("AttnDownBlock2D" if flag else "DownBlock2D" for flag in attention_levels),
        "up_block_types": tuple("AttnUpBlock2D" if flag else "UpBlock2D" for flag in reversed(attention_levels)),
    }
    for name, value in required.items():
        received = tuple(config[name]) if isinstance(value, tuple) else config.get(name)
        if received != value:
            raise ValueError(
                f"The slice model has {name}={received!r}, but volumetric layers can be added to a UNet2DModel with "
                f"{name}={value!r} only; train the slice model so."
            )
    return {name: config[name] for name in SHARED_SETTINGS} | {"attention_levels": attention_levels}


def _check_config(config: Any) -> None:
    """Raise ValueError unless the widths, levels, groups and heads fit each other."""
    widths, flags = tuple(config["block_out_channels"]), tuple(config["attention_levels"])
    groups, head_dim = config["norm_num_groups"], config["attention_head_dim"]
    if len(flags) != len(widths):
        raise ValueError(f"attention_levels are {len(flags)} values for {len(widths)} levels; give one a level.")
    if any(width % groups for width in widths):
        raise ValueError(
            f"block_out_channels {widths} cannot be split into {groups} groups; choose norm_num_groups so that it divides "
            "every width."
        )
    attended = {width for width, flag in zip(widths, flags, strict=True) if flag} | {widths[-1]}
    if not isinstance(head_dim, int) or any(width % head_dim for width in attended):
        raise ValueError(
            f"Attention of widths {sorted(attended)} cannot be split into heads of width {head_dim}; choose "
            "attention_head_dim so that it divides every width that attends, the last one among them."
        )
    for name in ("layers_per_block", "window"):
        if config[name] < 1:
            raise ValueError(f"{name} is {config[name]}; give at least 1.")
