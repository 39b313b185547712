"""The U-Net of cDPM (Peng et al. 2022, arXiv 2212.08034), which is that of FDM (Harvey et al. 2022, arXiv 2205.11495)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from torch import nn

from voxdiff.models.base import VolumeModel
from voxdiff.models.layers_3d import expand_timesteps, nearest_valid_sizes, zero_module
from voxdiff.models.layers_slice_conditioned import (
    SliceConditionedDownBlock,
    SliceConditionedMidBlock,
    SliceConditionedUpBlock,
)
from voxdiff.models.slice_attention import SliceSet, distance_features
from voxdiff.models.slice_convolution import find_neighbours
from voxdiff.models.slice_slots import check_slots, interpolate_known, join_known, target_slots
from voxdiff.models.unet_widths import unet_widths

POSITION_EMBEDDINGS = ("relative", "relative+absolute")


@dataclass
class SliceConditionedUNetOutput(BaseOutput):
    """Output of :class:`SliceConditionedUNetModel`.

    Attributes:
        sample: Network prediction ``(batch, out_channels, x, y, slots)``.
    """

    sample: torch.Tensor


class SliceConditionedUNetModel(VolumeModel):
    """Noise predictor for any set of slices of a volume, given any other set of its slices.

    A slot of the set is a noisy target or a known clean slice; the network is told which, and where the slices lie.
    The layers work on each slice alone, except attention over the slots. There, only the distances between the slices
    count: a set is as likely anywhere in the volume, unless ``position_embedding="relative+absolute"``. The defaults
    are the published network of FDM for 128 x 128 pixels; the paper of cDPM states no sizes.

    Args:
        in_channels: Channels of a slice.
        out_channels: Channels of the prediction.
        block_out_channels: Width of each level; x and y must be divisible by ``patch_size * 2 ** (levels - 1)``.
        layers_per_block: Residual blocks of a level in the encoder; the decoder has one more.
        attention_levels: Whether a level attends; the middle always does.
        num_attention_heads: Heads of every attention.
        norm_num_groups: Groups of the group norms.
        norm_eps: Epsilon of the group norms.
        position_embedding: ``"relative"`` (published) or ``"relative+absolute"``, which adds a zero-initialised embedding
            of each slot's position to its time embedding.
        position_scale: Highest position in the volume, of which the absolute embedding takes the fraction.
        scale_shift_norm: Whether the time embedding scales and shifts the second norm's output of a residual block; else
            it is added before that norm.
        masked_norm: Whether padding is left out of the statistics of the norm over slots; in the published network it
            changes the result of every other slot.
        interpolate_known: Whether the network also sees, in every slot, what linear interpolation between the known slices
            gives there, and how near the next of them is: it then learns what interpolation misses. Not published.
        slice_convolution: Whether each layer of the encoder begins with a convolution over neighbouring slices, known or not,
            so that they can agree at full resolution and not in attention at coarse levels alone. Not published.
        patch_size: Side of the squares of pixels that become channels before the first layer, and pixels again after the
            last: 2 leaves a quarter of the positions for the finest level to work on. Published: 1.
        pre_norm_residual: Whether attention is added to its input; the published network adds it to the normalised input.

    Raises:
        ValueError: On settings that contradict each other; the sentence names them.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ResnetBlock2D", "FactorizedAttention"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        block_out_channels: tuple = (128, 128, 256, 384, 512),
        layers_per_block: int = 2,
        attention_levels: tuple = (False, False, False, True, True),
        num_attention_heads: int = 4,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        position_embedding: str = "relative",
        position_scale: float = 127.0,
        scale_shift_norm: bool = True,
        masked_norm: bool = False,
        interpolate_known: bool = False,
        slice_convolution: bool = False,
        patch_size: int = 1,
        pre_norm_residual: bool = False,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        widths, base, last = tuple(block_out_channels), block_out_channels[0], len(block_out_channels) - 1
        block: dict[str, Any] = {"temb_channels": 4 * base, "num_heads": num_attention_heads}
        block |= {"groups": norm_num_groups, "eps": norm_eps, "scale_shift_norm": scale_shift_norm}
        block |= {"masked_norm": masked_norm, "pre_norm_residual": pre_norm_residual}

        self.time_proj = Timesteps(base, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(base, 4 * base)
        if position_embedding == "relative+absolute":
            self.absolute_embedding = TimestepEmbedding(base, 4 * base)
            zero_module(self.absolute_embedding.linear_2)
        shown = (in_channels + 1) * (2 if interpolate_known else 1)
        self.conv_in = nn.Conv2d(shown * patch_size**2, base, 3, padding=1)

        encoder, decoder = unet_widths(widths, layers_per_block)
        self.down_blocks = nn.ModuleList(
            SliceConditionedDownBlock(
                pairs,
                attentions=layers_per_block * attends,
                add_downsample=level < last,
                slice_convolution=slice_convolution,
                **block,
            )
            for level, (pairs, attends) in enumerate(zip(encoder, attention_levels, strict=True))
        )
        self.mid_block = SliceConditionedMidBlock([(widths[-1], widths[-1])] * 2, attentions=1, **block)
        self.up_blocks = nn.ModuleList(
            SliceConditionedUpBlock(
                pairs, attentions=(layers_per_block + 1) * attends, add_upsample=level < last, **block
            )
            for level, (pairs, attends) in enumerate(zip(decoder, reversed(attention_levels), strict=True))
        )

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, base, eps=norm_eps)
        self.conv_out = zero_module(nn.Conv2d(base, out_channels * patch_size**2, 3, padding=1))

    @property
    def size_divisor(self) -> int:
        """What the slices' x and y must be divisible by; any number of slots will do."""
        return self.config["patch_size"] * 2 ** (len(self.config["block_out_channels"]) - 1)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        *,
        positions: torch.Tensor,
        known_slices: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
        targets_only: bool = True,
        num_targets: int | None = None,
        return_dict: bool = True,
    ) -> SliceConditionedUNetOutput | tuple[torch.Tensor]:
        """Predict what the scheduler's ``prediction_type`` says.

        Args:
            sample: Noisy slices ``(batch, in_channels, x, y, slots)``, x and y divisible by :attr:`size_divisor`; used
                where a slot is not known.
            timestep: Diffusion time in ``[0, 1000)``, one number or one a sample; it holds for all slots.
            positions: Where the slices lie ``(batch, slots)``, in slices, any real numbers.
            known_slices: Clean slices of the shape of ``sample``, used where a slot is known; None: nothing is known.
            known: ``(batch, slots)``, 1 or True for the known slots; together with ``known_slices``.
            valid: ``(batch, slots)``, 0 or False for padding, which no other slot attends to; None: no padding.
            targets_only: Whether to predict nothing for known slots and padding: zero, at no cost after the last
                attention over slots. The other slots' prediction is the same.
            num_targets: Number of the batch's slots that are neither known nor padding, where the caller knows it: spares
                a synchronisation with the device and lets ``torch.compile`` build one graph. With ``targets_only``.
            return_dict: Whether to return a :class:`SliceConditionedUNetOutput` instead of a tuple.

        Raises:
            ValueError: If an argument does not fit the network or the sample.
        """
        self._check_sample(sample)
        check_slots(sample, positions, known_slices, known, valid)
        batch, slots = sample.shape[0], sample.shape[-1]
        keep = target_slots(known, valid, num_targets) if targets_only else None
        if keep is None and num_targets not in (None, batch * slots):
            raise ValueError(
                f"num_targets is {num_targets}, but {batch * slots} slots are predicted; leave it out where nothing is known "
                "and without targets_only."
            )
        slices, temb = self._embed(timestep, positions, valid, sample)

        joined = join_known(sample, known_slices, known)
        if self.config["interpolate_known"]:
            shown = known if known is None or valid is None else known.bool() & valid.bool()
            joined = torch.cat([joined, interpolate_known(sample, positions, known_slices, shown)], dim=1)
        joined = joined.permute(0, 4, 1, 2, 3).flatten(0, 1)
        hidden_states = self.conv_in(F.pixel_unshuffle(joined, self.config["patch_size"]))
        maps = [hidden_states]
        for down_block in self.down_blocks:
            hidden_states, level_maps = down_block(hidden_states, temb, slices)
            maps += level_maps
        hidden_states = self.mid_block(hidden_states, temb, slices)

        attending = [index for index, block in enumerate(self.up_blocks) if block.attentions]
        cut = attending[-1] if attending else -1
        if cut < 0 and keep is not None:
            hidden_states, temb, *maps = (tensor[keep] for tensor in (hidden_states, temb, *maps))
        for index, up_block in enumerate(self.up_blocks):
            if index == cut and keep is not None:
                hidden_states = up_block(hidden_states, maps, temb, slices, keep=keep)
                temb, *maps = (tensor[keep] for tensor in (temb, *maps))
            else:
                hidden_states = up_block(hidden_states, maps, temb, slices)

        output = self.conv_out(F.silu(self.conv_norm_out(hidden_states)))
        output = F.pixel_shuffle(output, self.config["patch_size"])
        if keep is not None:
            output = output.new_zeros(batch * slots, *output.shape[1:]).index_copy(0, keep, output)
        output = output.unflatten(0, (batch, slots)).permute(0, 2, 3, 4, 1)
        return SliceConditionedUNetOutput(sample=output) if return_dict else (output,)

    def _embed(
        self,
        timestep: torch.Tensor | float | int,
        positions: torch.Tensor,
        valid: torch.Tensor | None,
        sample: torch.Tensor,
    ) -> tuple[SliceSet, torch.Tensor]:
        """What attention knows of the slices, and the embedding of each slot."""
        timesteps = self.time_proj(expand_timesteps(timestep, sample))
        time = self.time_embedding(timesteps.to(sample.dtype))
        slices = SliceSet(
            time,
            distance_features(positions).to(sample.dtype),
            None if valid is None else valid.bool(),
            find_neighbours(positions, valid) if self.config["slice_convolution"] else None,
        )
        temb = time.repeat_interleave(positions.shape[1], dim=0)
        if self.config["position_embedding"] == "relative+absolute":
            fractions = positions.float().flatten() / self.config["position_scale"]
            temb = temb + self.absolute_embedding(self.time_proj(1000 * fractions).to(sample.dtype))
        return slices, temb

    def _check_sample(self, sample: torch.Tensor) -> None:
        channels, divisor = self.config["in_channels"], self.size_divisor
        if sample.ndim != 5 or sample.shape[1] != channels or sample.shape[-1] == 0:
            raise ValueError(
                f"The U-Net got a tensor of shape {tuple(sample.shape)}; it takes (batch, {channels}, x, y, slots)."
            )
        for axis, size in zip("xy", sample.shape[2:4], strict=True):
            if size == 0 or size % divisor:
                raise ValueError(
                    f"The slices are {tuple(sample.shape[2:4])}, but this network needs x and y divisible by {divisor}: use "
                    f"{nearest_valid_sizes(size, divisor)} along {axis}."
                )


def _check_config(config: Any) -> None:
    """Raise ValueError unless the widths, levels, groups, heads and positions fit each other."""
    widths, flags = tuple(config["block_out_channels"]), tuple(config["attention_levels"])
    groups, heads = config["norm_num_groups"], config["num_attention_heads"]
    if not widths or groups < 1:
        raise ValueError(
            f"block_out_channels are {widths} and norm_num_groups is {groups}; give at least one level and one group."
        )
    if len(flags) != len(widths):
        raise ValueError(f"attention_levels are {len(flags)} values for {len(widths)} levels; give one a level.")
    if any(width % groups for width in widths):
        raise ValueError(
            f"block_out_channels {widths} cannot be split into {groups} groups; choose norm_num_groups so that it divides "
            "every width."
        )
    attended = {width for width, flag in zip(widths, flags, strict=True) if flag} | {widths[-1]}
    if heads < 1 or any(width % heads for width in attended):
        raise ValueError(
            f"Attention of widths {sorted(attended)} cannot be split into {heads} heads; choose num_attention_heads so "
            "that it divides every width that attends, the last one among them."
        )
    for name in ("layers_per_block", "patch_size"):
        if config[name] < 1:
            raise ValueError(f"{name} is {config[name]}; give at least 1.")
    if config["position_embedding"] not in POSITION_EMBEDDINGS:
        raise ValueError(
            f"position_embedding is {config['position_embedding']!r}; allowed are {', '.join(POSITION_EMBEDDINGS)}."
        )
    if not config["position_scale"] > 0:
        raise ValueError(
            f"position_scale is {config['position_scale']}; give the highest position in the volume, above 0."
        )
