"""BiFlowNet of 3D MedDiffusion (Wang et al. 2024, arXiv 2412.13059): a 3D U-Net fed by an intra-patch flow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from voxdiff.models.axis_order import check_axis_order, from_network, to_network
from voxdiff.models.intra_patch_flow import BLOCKS, IntraPatchFlow
from voxdiff.models.layers_3d import nearest_valid_sizes
from voxdiff.models.layers_biflownet_3d import (
    BiFlowDownBlock3D,
    BiFlowMidBlock3D,
    BiFlowResnetBlock3D,
    BiFlowUpBlock3D,
)
from voxdiff.models.volume_conditions import ConditionedVolumeModel


@dataclass
class BiFlowNet3DOutput(BaseOutput):
    """Output of :class:`BiFlowNet3DModel`.

    Attributes:
        sample: Network prediction ``(batch, out_channels, x, y, z)``.
    """

    sample: torch.Tensor


class BiFlowNet3DModel(ConditionedVolumeModel):
    """Noise predictor for latents: an inter-patch U-Net that adds the four maps of an intra-patch flow to its own.

    The first two maps join the encoder before its two levels of full resolution, the last two the decoder before the
    same levels. The defaults are the published 8x network; the 4x one has ``token_size=2``.

    Args:
        in_channels: Channels of the latent.
        out_channels: Channels of the prediction.
        block_out_channels: Width of each level; the first two are equal and share the full resolution.
        attention_levels: Whether a level attends over all of its voxels; the middle always does.
        num_class_embeds: Number of classes; None: no class label.
        intra_patch: ``"dit"`` (published), ``"unet"`` (convolutional blocks in its place) or None (the U-Net alone).
        token_size: Edge of a token of the intra-patch flow, in latent voxels.
        sub_volume_size: Edge of a sub-volume of the intra-patch flow, in latent voxels.
        num_mid_dit_layers: Blocks between the input and the output blocks of the intra-patch flow.
        num_dit_heads: Attention heads of the intra-patch flow.
        mlp_ratio: Width of the hidden layers over the tokens' width.
        num_attention_heads: Attention heads of the U-Net.
        attention_head_dim: Width of an attention head of the U-Net.
        norm_num_groups: Groups of the group norms.
        norm_eps: Epsilon of the group norms.
        resolution_scale: The grid is embedded as its sizes over this number.
        axis_order: Order in which the network sees the axes, ``"zxy"`` (published) or ``"xyz"``.
        null_condition: Whether the model was trained without any condition too: the label -1 and all scalars NaN.
        optional_scalars: Whether the model was trained with single scalars absent: any of them may be NaN.
        scalar_conditions: ``{name: {"place": 0, "mean": 0.0, "std": 1.0}}``; place is the column of ``scalars``, mean
            and std are of the training data.

    Raises:
        ValueError: On settings that contradict each other; the sentence names them.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["BiFlowResnetBlock3D", "SpatialAttention3D", "DiTBlock"]
    _skip_layerwise_casting_patterns = ["norm", "pos_embed"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 8,
        out_channels: int = 8,
        block_out_channels: tuple = (72, 72, 144, 288, 576),
        attention_levels: tuple = (False, False, False, True, True),
        num_class_embeds: int | None = 7,
        intra_patch: str | None = "dit",
        token_size: int = 1,
        sub_volume_size: int = 8,
        num_mid_dit_layers: int = 1,
        num_dit_heads: int = 8,
        mlp_ratio: int = 4,
        num_attention_heads: int = 8,
        attention_head_dim: int = 32,
        norm_num_groups: int = 24,
        norm_eps: float = 1e-5,
        resolution_scale: int = 64,
        axis_order: str = "zxy",
        null_condition: bool = False,
        optional_scalars: bool = False,
        scalar_conditions: dict | None = None,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        widths, base = tuple(block_out_channels), block_out_channels[0]
        norm: dict[str, Any] = {"groups": norm_num_groups, "eps": norm_eps}
        attention = {"num_heads": num_attention_heads, "head_dim": attention_head_dim}
        level_attention = [attention if flag else None for flag in attention_levels]

        temb_channels = self._add_condition_embeddings(
            base, num_class_embeds, null_condition, optional_scalars, scalar_conditions
        )
        resnet = {"temb_channels": temb_channels, **norm}
        self.conv_in = nn.Conv3d(in_channels, base, 3, padding=1)
        if intra_patch is not None:
            self.intra_patch_flow = IntraPatchFlow(
                in_channels,
                base,
                temb_channels,
                block=intra_patch,
                sub_volume_size=sub_volume_size,
                token_size=token_size,
                num_mid_layers=num_mid_dit_layers,
                num_heads=num_dit_heads,
                mlp_ratio=mlp_ratio,
                **norm,
            )

        last = len(widths) - 1
        in_widths = (base, *widths[:-1])
        self.down_blocks = nn.ModuleList(
            BiFlowDownBlock3D(in_widths[level], widths[level], 0 < level < last, level_attention[level], **resnet)
            for level in range(len(widths))
        )
        self.mid_block = BiFlowMidBlock3D(widths[-1], attention, **resnet)
        self.up_blocks = nn.ModuleList(
            BiFlowUpBlock3D(widths[level], in_widths[level], level > 1, level_attention[level], **resnet)
            for level in reversed(range(len(widths)))
        )
        self.resnet_out = BiFlowResnetBlock3D(2 * base, base, None, **norm)
        self.conv_out = nn.Conv3d(base, out_channels, 1)

    @property
    def size_divisor(self) -> int:
        """What every size of the latent grid must be divisible by."""
        halvings = len(self.config["block_out_channels"]) - 2
        return math.lcm(2**halvings, self.config["sub_volume_size"] if self.config["intra_patch"] else 1)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        scalars: torch.Tensor | None = None,
        down_block_additional_residuals: Sequence[torch.Tensor] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> BiFlowNet3DOutput | tuple[torch.Tensor]:
        """Predict what the scheduler's ``prediction_type`` says.

        Args:
            sample: Normalised latent ``(batch, in_channels, x, y, z)``, x, y and z divisible by :attr:`size_divisor`.
            timestep: Diffusion time in ``[0, 1000)``, one number or one a sample.
            class_labels: ``(batch,)`` class of each sample; -1 is no class, under ``null_condition``.
            scalars: ``(batch, number)`` in the user's units, columns as :attr:`scalar_names`; NaN is absent: any under
                ``optional_scalars``, all of a sample under ``null_condition``.
            down_block_additional_residuals: One map a level, from a ControlNet, ``(batch, width, x, y, z)`` at the
                level's resolution: added to the level's second saved map, on its way to the decoder only.
            mid_block_additional_residual: Added to the output of the middle.
            return_dict: Whether to return a :class:`BiFlowNet3DOutput` instead of a tuple.

        Raises:
            ValueError: If the sample, a condition or a residual does not fit the network.
        """
        self._check_sample(sample)
        axis_order = self.config["axis_order"]
        sample = to_network(sample, axis_order)
        temb = self._embed_conditions(timestep, class_labels, scalars, sample)
        flow = self.intra_patch_flow(sample, temb) if self.config["intra_patch"] else None

        stem = hidden_states = self.conv_in(sample)
        saved = []
        for level, block in enumerate(self.down_blocks):
            if flow is not None and level < 2:
                hidden_states = hidden_states + flow[level]
            hidden_states, maps = block(hidden_states, temb)
            saved.append(maps)
        hidden_states = self.mid_block(hidden_states, temb)
        if mid_block_additional_residual is not None:
            hidden_states = self._add(hidden_states, mid_block_additional_residual, "mid_block_additional_residual")
        if down_block_additional_residuals is not None:
            saved = self._control(saved, down_block_additional_residuals)
        for level, block in zip(reversed(range(len(saved))), self.up_blocks, strict=True):
            if flow is not None and level < 2:
                hidden_states = hidden_states + flow[3 - level]
            hidden_states = block(hidden_states, saved.pop(), temb)

        output = self.conv_out(self.resnet_out(torch.cat([hidden_states, stem], dim=1)))
        output = from_network(output, axis_order)
        return BiFlowNet3DOutput(sample=output) if return_dict else (output,)

    def _control(
        self, saved: list[tuple[torch.Tensor, torch.Tensor]], residuals: Sequence[torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        if len(residuals) != len(saved):
            raise ValueError(
                f"down_block_additional_residuals are {len(residuals)} tensors; pass one for each of the {len(saved)} "
                "levels."
            )
        return [
            (first, self._add(second, residual, f"down_block_additional_residuals[{level}]"))
            for level, ((first, second), residual) in enumerate(zip(saved, residuals, strict=True))
        ]

    def _add(self, hidden_states: torch.Tensor, residual: torch.Tensor, name: str) -> torch.Tensor:
        residual = to_network(residual, self.config["axis_order"])
        if residual.shape != hidden_states.shape:
            expected = tuple(from_network(hidden_states, self.config["axis_order"]).shape)
            received = tuple(from_network(residual, self.config["axis_order"]).shape)
            raise ValueError(f"{name} has shape {received}; pass a map of shape {expected}.")
        return hidden_states + residual

    def _check_sample(self, sample: torch.Tensor) -> None:
        divisor, channels = self.size_divisor, self.config["in_channels"]
        if sample.ndim != 5 or sample.shape[1] != channels:
            raise ValueError(
                f"BiFlowNet got a tensor of shape {tuple(sample.shape)}; it takes (batch, {channels}, x, y, z)."
            )
        for axis, size in zip("xyz", sample.shape[2:], strict=True):
            if size == 0 or size % divisor:
                raise ValueError(
                    f"The latent grid is {tuple(sample.shape[2:])}, but every size must be divisible by {divisor} (the "
                    f"depth of the U-Net, the sub-volume): use {nearest_valid_sizes(size, divisor)} along {axis}."
                )


def _check_config(config: Any) -> None:
    """Raise ValueError unless the widths, levels, groups, heads and the sub-volume fit each other."""
    check_axis_order(config["axis_order"])
    widths, base = tuple(config["block_out_channels"]), config["block_out_channels"][0]
    if len(widths) < 2 or widths[0] != widths[1] or base < 4:
        raise ValueError(
            f"block_out_channels are {widths}; give at least two widths, the first two of which are equal, because the "
            "intra-patch maps join both, and at least 4, because time is embedded in as many channels."
        )
    if len(config["attention_levels"]) != len(widths):
        raise ValueError(
            f"attention_levels are {len(config['attention_levels'])} values for {len(widths)} levels; give one a level."
        )
    if any(width % config["norm_num_groups"] for width in widths):
        raise ValueError(
            f"block_out_channels {widths} cannot be split into {config['norm_num_groups']} groups; choose "
            "norm_num_groups so that it divides every width."
        )
    if config["num_class_embeds"] is not None and config["num_class_embeds"] < 1:
        raise ValueError(f"num_class_embeds is {config['num_class_embeds']}; give at least 1, or None for no classes.")
    if config["intra_patch"] is None:
        return
    if config["intra_patch"] not in BLOCKS:
        raise ValueError(f"intra_patch is {config['intra_patch']!r}; allowed are {', '.join(BLOCKS)} and None.")
    if config["sub_volume_size"] % config["token_size"]:
        raise ValueError(
            f"A sub-volume of edge {config['sub_volume_size']} cannot be cut into tokens of edge "
            f"{config['token_size']}; choose token_size so that it divides sub_volume_size."
        )
    heads = config["num_dit_heads"] if config["intra_patch"] == "dit" else 1
    if base % 6 or base % heads:
        raise ValueError(
            f"The intra-patch flow is {base} channels wide; choose a first width divisible by 6 (its position embedding) "
            f"and by its {heads} heads."
        )
