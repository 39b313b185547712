"""Official state dicts of GEM-3D's three U-Nets (Zhu et al. 2024): both training stages and the slice generator."""

import re
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from voxdiff.hub.adm_layout import RESNET_PARTS, read_depth
from voxdiff.hub.checkpoints_gem import select_unet
from voxdiff.hub.state_dicts import Config, Converter, StateDict, require_shape
from voxdiff.models.unet_informed_slice import InformedSliceUNetModel

_HEAD_DIM = 32  # the same in every official network; no tensor tells

_SIGNS = {
    "gem3d-stage2": (r".*_tem\..*", "volumetric layers"),
    "gem3d-slice": (r".*\.transformer_blocks\..*", "cross-attention"),
    "kl-f8": (r"(encoder|decoder)\..*", "the layers of an autoencoder"),
}
"""Converter -> the tensors, and what they are called, that its networks have and no others."""

_RESNETS = (
    ("input_blocks.{encoder}.0", "down_blocks.{level}.resnets.{layer}"),
    ("middle_block.0", "mid_block.resnets.0"),
    ("middle_block.2", "mid_block.resnets.1"),
    ("output_blocks.{decoder}.0", "up_blocks.{level}.resnets.{layer}"),
)
_VOLUMETRIC_RESNET_PARTS = (
    ("in_layers_tem.temporal_conv", "conv1_vol"),
    ("out_layers_tem.temporal_conv", "conv2_vol"),
)
_ATTENTIONS = (
    ("input_blocks.{encoder}.1", "down_blocks.{level}.attentions.{layer}"),
    ("middle_block.1", "mid_block.attentions.0"),
    ("output_blocks.{decoder}.1", "up_blocks.{level}.attentions.{layer}"),
)
_SELF_ATTENTION_PARTS = (
    ("norm", "group_norm"),
    *((f"qkv[{name}]", f"to_{name}") for name in "qkv"),
    ("proj_out", "to_out.0"),
)
_VOLUMETRIC_ATTENTION_PARTS = (
    *((f"qkv_tem[{name}]", f"vol.to_{name}") for name in "qkv"),
    ("proj_out_tem", "vol.to_out.0"),
)
_TRANSFORMER_LAYERS = (
    *(f"{attention}.to_{part}" for attention, part in product(("attn1", "attn2"), ("q", "k", "v", "out.0"))),
    *("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"),
)
_TRANSFORMER_PARTS = tuple(
    (part, part)
    for part in (
        *("norm", "proj_in", "proj_out"),
        *(f"transformer_blocks.{{block}}.{layer}" for layer in _TRANSFORMER_LAYERS),
    )
)
_FRAME = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("input_blocks.{halving}.0.op", "down_blocks.{level}.downsamplers.0.conv"),
    ("output_blocks.{doubling}.{upsampler}.conv", "up_blocks.{level}.upsamplers.0.conv"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)
_VOLUMETRIC_FRAME = (
    ("input_blocks.0.1.temporal_conv", "conv_in_vol"),
    ("input_blocks.{halving}.0.op_tem.temporal_conv", "down_blocks.{level}.downsamplers.0.conv_vol"),
    ("output_blocks.{doubling}.{upsampler}.conv_tem.temporal_conv", "up_blocks.{level}.upsamplers.0.conv_vol"),
    ("out_tem.temporal_conv", "conv_out_vol"),
)

Rows = tuple[tuple[str, str], ...]


def _rows(modules: Rows, parts: Rows) -> Rows:
    return tuple(
        (f"{theirs}.{part}", f"{ours}.{our_part}") for (theirs, ours), (part, our_part) in product(modules, parts)
    )


STAGE1_KEYS = (*_FRAME, *_rows(_RESNETS, RESNET_PARTS), *_rows(_ATTENTIONS, _SELF_ATTENTION_PARTS))
STAGE2_KEYS = (
    *STAGE1_KEYS,
    *_VOLUMETRIC_FRAME,
    *_rows(_RESNETS, _VOLUMETRIC_RESNET_PARTS),
    *_rows(_ATTENTIONS, _VOLUMETRIC_ATTENTION_PARTS),
)
SLICE_KEYS = (*_FRAME, *_rows(_RESNETS, RESNET_PARTS), *_rows(_ATTENTIONS, _TRANSFORMER_PARTS))
"""Official module -> ours, once :func:`split_heads` parted the projections; up levels count from the deepest."""


def numbering(config: Config, level: int = 0, layer: int = 0, **numbers: int) -> dict[str, int]:
    """Positions in the official flat lists of blocks; an upsampling convolution comes after the attention, if any."""
    layers = config["layers_per_block"]
    first = level * (layers + 1)
    return {
        "encoder": 1 + first + layer,
        "halving": 1 + first + layers,
        "decoder": first + layer,
        "doubling": first + layers,
        "upsampler": 2 if _attends(config)[-1 - level] else 1,
    }


def split_heads(state_dict: StateDict, head_dim: int) -> StateDict:
    """Parts the joined self-attention projections, as ``...qkv[q].weight`` and so on, and makes 1D kernels matrices.

    Their rows are ordered by head first: queries, keys and values of head 0, then those of head 1.

    Raises:
        ValueError: A projection is not made of heads of that width.
    """
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in state_dict.items():
        if ".qkv" in key or ".proj_out" in key:
            tensor = tensor.squeeze(2) if tensor.ndim == 3 else tensor
        module, _, kind = key.rpartition(".")
        if not module.endswith(("qkv", "qkv_tem")):
            tensors[key] = tensor
            continue
        if not tensor.ndim or tensor.shape[0] % (3 * head_dim):
            raise ValueError(
                f"The tensor {key} of shape {tuple(tensor.shape)} is no projection to queries, keys and values of heads of "
                f"{head_dim} channels; give the network's own attention_head_dim."
            )
        parts = tensor.unflatten(0, (-1, 3, head_dim)).unbind(1)
        tensors |= {f"{module}[{name}].{kind}": part.flatten(0, 1) for name, part in zip("qkv", parts, strict=True)}
    return tensors


def read_config(state_dict: StateDict, network: str) -> Config:
    """Reads what the three networks share off official tensors, with ``attention_levels`` from the shallowest on.

    Args:
        state_dict: Official names and tensors.
        network: Name of the converter, whose networks these must be.

    Raises:
        ValueError: The tensors belong to another network or contradict each other.
    """
    _check_signs(state_dict, network)
    levels, layers = read_depth(state_dict, r"[12]\.conv\.")
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    return {
        "in_channels": require_shape(state_dict, "input_blocks.0.0.weight", 4)[1],
        "out_channels": require_shape(state_dict, "out.2.weight", 4)[0],
        "block_out_channels": tuple(
            require_shape(state_dict, f"input_blocks.{block}.0.out_layers.3.weight", 4)[0] for block in firsts
        ),
        "layers_per_block": layers,
        "attention_levels": tuple(f"input_blocks.{block}.1.norm.weight" in state_dict for block in firsts),
    }


def read_stage1_config(state_dict: StateDict) -> Config:
    """Reads a :class:`diffusers.UNet2DModel`'s configuration off official tensors."""
    config = read_config(state_dict, "gem3d-stage1")
    return {**_with_block_types(config, "Attn"), "attention_head_dim": _HEAD_DIM}


def read_slice_config(state_dict: StateDict) -> Config:
    """Reads a :class:`diffusers.UNet2DConditionModel`'s configuration off official tensors."""
    config = read_config(state_dict, "gem3d-slice")
    blocks = {
        match[1] for key in state_dict if (match := re.match(r"middle_block\.1\.transformer_blocks\.(\d+)\.", key))
    }
    context = require_shape(state_dict, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 2)[1]
    return {
        **_with_block_types(config, "CrossAttn"),
        "cross_attention_dim": context,
        "transformer_layers_per_block": len(blocks),
        # diffusers gives this key of this class, despite its name, the number of heads
        "attention_head_dim": tuple(width // _HEAD_DIM for width in config["block_out_channels"]),
    }


def _with_block_types(config: Config, attention: str) -> Config:
    prefixes = [attention if attends else "" for attends in config["attention_levels"]]
    return {
        **{key: value for key, value in config.items() if key != "attention_levels"},
        "down_block_types": tuple(f"{prefix}DownBlock2D" for prefix in prefixes),
        "up_block_types": tuple(f"{prefix}UpBlock2D" for prefix in reversed(prefixes)),
    }


def _attends(config: Config) -> list[bool]:
    """Which levels have attention, from the shallowest on."""
    if "attention_levels" in config:
        return list(config["attention_levels"])
    return ["Attn" in block for block in config["down_block_types"]]


def _check_signs(state_dict: StateDict, network: str) -> None:
    found = {
        name: next((key for key in state_dict if re.fullmatch(pattern, key)), None)
        for name, (pattern, _) in _SIGNS.items()
    }
    for name, key in found.items():
        if name != network and key is not None:
            raise ValueError(
                f"The state dict has {_SIGNS[name][1]} (tensor {key}), which {network!r} networks do not have; convert it "
                f"with {name!r}."
            )
    if network in found and found[network] is None:
        raise ValueError(
            f"The state dict has no {_SIGNS[network][1]}, as {network!r} networks have; give one that has them."
        )


@dataclass(frozen=True, kw_only=True)
class GemConverter(Converter):
    """A converter that also takes a whole Lightning checkpoint, and with ``weights="ema"`` its averaged weights.

    Args:
        averaged: Whether the checkpoints' averages are those of this network.
        joined_heads: Whether self-attention projections are joined, to be parted by ``attention_head_dim``.
    """

    averaged: bool
    joined_heads: bool

    def build(self, name: str, state_dict: StateDict, overrides: Config) -> torch.nn.Module:
        """As for every converter; raises ValueError, too, where averages are asked for and there are none."""
        options = dict(overrides)
        weights = options.pop("weights", "raw")
        if weights == "ema" and not self.averaged:
            raise ValueError(
                f"weights is 'ema', but the averages in a {name!r} checkpoint are left over from stage 1 and were not "
                "trained further; leave it out."
            )
        tensors = select_unet(state_dict, weights)
        if self.joined_heads:
            tensors = split_heads(tensors, options.get("attention_head_dim", _HEAD_DIM))
        return super().build(name, tensors, options)


_OVERRIDES = ("attention_head_dim", "norm_num_groups", "norm_eps")
STAGE1 = GemConverter(
    model=UNet2DModel,
    read_config=read_stage1_config,
    overrides=("weights", *_OVERRIDES),
    keys=STAGE1_KEYS,
    numbering=numbering,
    averaged=True,
    joined_heads=True,
)
STAGE2 = GemConverter(
    model=InformedSliceUNetModel,
    read_config=partial(read_config, network="gem3d-stage2"),
    overrides=(*_OVERRIDES, "window"),
    keys=STAGE2_KEYS,
    numbering=numbering,
    averaged=False,
    joined_heads=True,
)
SLICE = GemConverter(
    model=UNet2DConditionModel,
    read_config=read_slice_config,
    overrides=("weights", *_OVERRIDES),
    keys=SLICE_KEYS,
    numbering=numbering,
    averaged=True,
    joined_heads=False,
)
