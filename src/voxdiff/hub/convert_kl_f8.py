"""Official state dicts of KL-f8 (Rombach et al. 2022), the 2D autoencoder of GEM-3D, into diffusers' AutoencoderKL."""

import re

from diffusers import AutoencoderKL

from voxdiff.hub.checkpoints_gem import select_vae
from voxdiff.hub.state_dicts import Config, Converter, StateDict, require_shape

_SLICE_SIZE = 512  # pixels a side of every slice that the published models saw

_RESNET_PARTS = (
    *((part, part) for part in ("norm1", "conv1", "norm2", "conv2")),
    ("nin_shortcut", "conv_shortcut"),
)
_ATTENTION_PARTS = (
    ("norm", "group_norm"),
    *((name, f"to_{name}") for name in "qkv"),
    ("proj_out", "to_out.0"),
)


def _half(network: str, level: str, blocks: str, resample: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """The rows of the encoder or the decoder."""
    resnets = (
        (f"{level}.block.{{layer}}", f"{blocks}.{{level}}.resnets.{{layer}}"),
        ("mid.block_1", "mid_block.resnets.0"),
        ("mid.block_2", "mid_block.resnets.1"),
    )
    rows = (
        ("conv_in", "conv_in"),
        *((f"{theirs}.{part}", f"{ours}.{our_part}") for theirs, ours in resnets for part, our_part in _RESNET_PARTS),
        *((f"mid.attn_1.{part}", f"mid_block.attentions.0.{our_part}") for part, our_part in _ATTENTION_PARTS),
        (f"{level}.{resample[0]}.conv", f"{blocks}.{{level}}.{resample[1]}.0.conv"),
        ("norm_out", "conv_norm_out"),
        ("conv_out", "conv_out"),
    )
    return tuple((f"{network}.{theirs}", f"{network}.{ours}") for theirs, ours in rows)


KEYS = (
    *_half("encoder", "down.{level}", "down_blocks", ("downsample", "downsamplers")),
    *_half("decoder", "up.{shallow_first}", "up_blocks", ("upsample", "upsamplers")),
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
)
"""Official module -> diffusers', once :func:`flatten_attention` made the attention's 1x1 convolutions matrices."""


def numbering(config: Config, level: int = 0, **numbers: int) -> dict[str, int]:
    """Official levels of the decoder count from the shallowest, diffusers' from the deepest."""
    return {"shallow_first": len(config["block_out_channels"]) - 1 - level}


def flatten_attention(state_dict: StateDict) -> StateDict:
    """The autoencoder's tensors, out of a whole checkpoint or not, the attention's 1x1 convolutions as matrices."""
    return {
        key: tensor.flatten(1) if ".attn_1." in key and tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor
        for key, tensor in select_vae(state_dict).items()
    }


def read_config(state_dict: StateDict) -> Config:
    """Reads an :class:`AutoencoderKL`'s configuration off official tensors.

    Raises:
        ValueError: A tensor is missing from which the configuration is read.
    """
    levels = _count(r"encoder\.down\.(\d+)\.", state_dict)
    widths = [
        require_shape(state_dict, f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(max(levels, 1))
    ]
    return {
        "in_channels": require_shape(state_dict, "encoder.conv_in.weight", 4)[1],
        "out_channels": require_shape(state_dict, "decoder.conv_out.weight", 4)[0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(widths),
        "layers_per_block": _count(r"encoder\.down\.0\.block\.(\d+)\.", state_dict),
        "latent_channels": require_shape(state_dict, "post_quant_conv.weight", 4)[1],
        "sample_size": _SLICE_SIZE,
        "scaling_factor": 0.18215,
    }


def _count(pattern: str, state_dict: StateDict) -> int:
    """How many numbers a module list has."""
    return len({match[1] for key in state_dict if (match := re.match(pattern, key))})


KL_F8 = Converter(
    model=AutoencoderKL,
    read_config=read_config,
    overrides=("norm_num_groups", "sample_size", "scaling_factor"),
    keys=KEYS,
    numbering=numbering,
    prepare=flatten_attention,
)
