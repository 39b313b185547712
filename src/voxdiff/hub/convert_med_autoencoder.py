"""Official state dicts of 3D MedDiffusion's Patch-Volume autoencoder and of the discriminator saved with it."""

import re

from voxdiff.hub.state_dicts import Config, Converter, StateDict, require_shape
from voxdiff.models.autoencoder_patch_volume import AutoencoderPatchVolume
from voxdiff.models.discriminator_patch_3d import PatchDiscriminator3D

_HEAD_DIM = 32  # published; no tensor tells how the attention's width is split into heads
_DISCRIMINATOR = "volume_discriminator."
_AUTOENCODER = ("encoder.", "decoder.", "pre_vq_conv.", "post_vq_conv.", "codebook.")
_PERCEPTUAL = "perceptual_loss."  # the VGG of the training loss, no part of the model

_RESNET_PARTS = (*((part, part) for part in ("norm1", "conv1", "norm2", "conv2")), ("resConv", "conv_shortcut"))
_ATTENTION_PARTS = (
    ("norm", "group_norm"),
    ("to_qkv[q]", "to_q"),
    ("to_qkv[k]", "to_k"),
    ("to_qkv[v]", "to_v"),
    ("to_out", "to_out.0"),
)


def _half(network: str, blocks: str, resample: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """The rows of the encoder or the decoder."""
    resnets = (
        *((f"conv_blocks.{{level}}.res{n + 1}", f"{blocks}.{{level}}.resnets.{n}") for n in range(2)),
        *((f"mid_block.res{n + 1}", f"mid_block.resnets.{n}") for n in range(2)),
    )
    rows = (
        ("conv_first", "conv_in"),
        *((f"{theirs}.{part}", f"{ours}.{our_part}") for theirs, ours in resnets for part, our_part in _RESNET_PARTS),
        *((f"mid_block.attn.{part}", f"mid_block.attentions.0.{our_part}") for part, our_part in _ATTENTION_PARTS),
        (f"conv_blocks.{{level}}.{resample[0]}", f"{blocks}.{{level}}.{resample[1]}.0.conv"),
        ("final_block.0", "conv_norm_out"),
        ("final_block.2", "conv_out"),
    )
    return tuple((f"{network}.{theirs}", f"{network}.{ours}") for theirs, ours in rows)


KEYS = (
    *_half("encoder", "down_blocks", ("down", "downsamplers")),
    *_half("decoder", "up_blocks", ("up.conv_trans", "upsamplers")),
    ("pre_vq_conv", "quant_conv"),
    ("post_vq_conv", "post_quant_conv"),
    ("codebook.embeddings", "quantize.embedding"),
    ("codebook.N", "quantize.cluster_size"),
    ("codebook.z_avg", "quantize.embed_avg"),
)
"""Official module or tensor -> ours, once :func:`split_attention` has split the queries, keys and values."""

DISCRIMINATOR_KEYS = (
    ("volume_discriminator.model{block}.0", "blocks.{block}.conv"),
    ("volume_discriminator.model{block}.1", "blocks.{block}.norm"),
)
"""Official module -> ours."""


def split_attention(state_dict: StateDict) -> StateDict:
    """The autoencoder's tensors with ``to_qkv`` in three and ``to_out`` as a matrix; training's tensors are left out."""
    tensors = {}
    for key, tensor in state_dict.items():
        if key.startswith((_DISCRIMINATOR, _PERCEPTUAL)):
            continue
        if key.endswith(".attn.to_qkv.weight"):
            for name, part in zip("qkv", tensor.tensor_split(3), strict=True):
                tensors[key.replace("to_qkv", f"to_qkv[{name}]")] = part
        elif key.endswith(".attn.to_out.weight") and tensor.shape[2:] == (1, 1, 1):
            tensors[key] = tensor.flatten(1)
        else:
            tensors[key] = tensor
    return tensors


def select_discriminator(state_dict: StateDict) -> StateDict:
    """The discriminator's tensors, and those that belong to no part of the official training module."""
    return {key: tensor for key, tensor in state_dict.items() if not key.startswith((*_AUTOENCODER, _PERCEPTUAL))}


def read_config(state_dict: StateDict) -> Config:
    """Reads an :class:`AutoencoderPatchVolume`'s configuration off official tensors that were split.

    Raises:
        ValueError: A tensor is missing from which the configuration is read.
    """
    levels = _count(r"encoder\.conv_blocks\.(\d+)\.", state_dict)
    widths = [
        require_shape(state_dict, f"encoder.conv_blocks.{level}.res1.conv1.weight", 5)[0] for level in range(levels)
    ]
    num_embeddings, latent_channels = require_shape(state_dict, "codebook.embeddings", 2)
    heads_width = require_shape(state_dict, "encoder.mid_block.attn.to_qkv[q].weight", 2)[0]
    entries = state_dict["codebook.embeddings"]
    return {
        "in_channels": require_shape(state_dict, "encoder.conv_first.weight", 5)[1],
        "out_channels": require_shape(state_dict, "decoder.final_block.2.weight", 5)[0],
        "latent_channels": latent_channels,
        "block_out_channels": tuple(widths),
        "num_attention_heads": heads_width // _HEAD_DIM,
        "num_embeddings": num_embeddings,
        "axis_order": "zxy",
        "latent_min": float(entries.min()),
        "latent_max": float(entries.max()),
    }


def read_discriminator_config(state_dict: StateDict) -> Config:
    """Reads a :class:`PatchDiscriminator3D`'s configuration off official tensors.

    Raises:
        ValueError: A tensor is missing from which the configuration is read.
    """
    base_channels, in_channels = require_shape(state_dict, "volume_discriminator.model0.0.weight", 5)[:2]
    blocks = _count(r"volume_discriminator\.model(\d+)\.", state_dict)
    return {
        "in_channels": in_channels,
        "base_channels": base_channels,
        "num_layers": blocks - 2,
        "axis_order": "zxy",
    }


def _count(pattern: str, state_dict: StateDict) -> int:
    """How many numbers a module list has."""
    return len({match[1] for key in state_dict if (match := re.match(pattern, key))})


MED_AUTOENCODER = Converter(
    model=AutoencoderPatchVolume,
    read_config=read_config,
    overrides=("norm_num_groups", "norm_eps", "num_attention_heads", "attention_head_dim", "patch_size"),
    keys=KEYS,
    prepare=split_attention,
)

MED_DISCRIMINATOR = Converter(
    model=PatchDiscriminator3D,
    read_config=read_discriminator_config,
    overrides=(),
    keys=DISCRIMINATOR_KEYS,
    prepare=select_discriminator,
)
