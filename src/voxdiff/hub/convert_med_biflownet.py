"""Official state dicts of BiFlowNet (3D MedDiffusion, Wang et al. 2024): one checkpoint a compression factor."""

import re
from pathlib import Path

import torch

from voxdiff.hub.checkpoints_packed import read_packed_checkpoint
from voxdiff.hub.state_dicts import Config, Converter, StateDict, require_shape
from voxdiff.models.biflownet_3d import BiFlowNet3DModel

_HEAD_DIM = 32  # the same in every official network

_FOREIGN = (
    (r"(controlnet|noise_estimator)\..*|mid_zero_conv\..*|downs\.\d+\.5\..*", "is a ControlNet, not a BiFlowNet"),
    (r"(encoder|decoder|codebook)\..*", "is an autoencoder, not a BiFlowNet; convert it with 'med-autoencoder'"),
    (r"module\..*", "was wrapped for several processes; give the state dict without the prefix"),
)

_BLOCKS = {
    "IntraPatchFlow_input.{block}.0": "intra_patch_flow.in_blocks.{block}",
    "IntraPatchFlow_mid.{block}": "intra_patch_flow.mid_blocks.{block}",
    "IntraPatchFlow_output.{block}.0": "intra_patch_flow.out_blocks.{block}",
}
_BLOCK_PARTS = {
    "skip_linear": "skip_linear",
    "attn.qkv[q]": "attn.to_q",
    "attn.qkv[k]": "attn.to_k",
    "attn.qkv[v]": "attn.to_v",
    "attn.proj": "attn.to_out.0",
    "mlp.fc1": "ff.linear_1",
    "mlp.fc2": "ff.linear_2",
    "adaLN_modulation.1": "adaln.linear",
}
_HEADS = {
    "IntraPatchFlow_input.{block}.1": "intra_patch_flow.in_heads.{block}",
    "IntraPatchFlow_output.{block}.1": "intra_patch_flow.out_heads.{block}",
}
_HEAD_PARTS = {"adaLN_modulation.1": "adaln.linear", "linear": "proj_out"}
_RESNETS = {
    "downs.{level}.{resnet}": "down_blocks.{level}.resnets.{layer}",
    "mid_block1": "mid_block.resnets.0",
    "mid_block2": "mid_block.resnets.1",
    "ups.{level}.{resnet}": "up_blocks.{level}.resnets.{layer}",
    "final_conv.0": "resnet_out",
}
_RESNET_PARTS = {
    "mlp.1": "time_emb_proj",
    "block1.proj": "conv1",
    "block1.norm": "norm1",
    "block2.proj": "conv2",
    "block2.norm": "norm2",
    "res_conv": "conv_shortcut",
}
_ATTENTIONS = {
    "downs.{level}.{attention}.fn": "down_blocks.{level}.attentions.{layer}",
    "mid_spatial_attn.fn": "mid_block.attentions.0",
    "ups.{level}.{attention}.fn": "up_blocks.{level}.attentions.{layer}",
}
_ATTENTION_PARTS = {
    "norm.gamma": "norm.weight",
    "fn.to_qkv[q]": "to_q",
    "fn.to_qkv[k]": "to_k",
    "fn.to_qkv[v]": "to_v",
    "fn.to_out": "to_out.0",
}

KEYS = (
    ("time_mlp.1", "time_embedding.linear_1"),
    ("time_mlp.3", "time_embedding.linear_2"),
    ("cond_emb", "class_embedding"),
    ("res_mlp.0", "resolution_embedding.linear_1"),
    ("res_mlp.2", "resolution_embedding.linear_2"),
    ("init_conv", "conv_in"),
    ("x_embedder.proj", "intra_patch_flow.patch_embed"),
    ("pos_embed", "intra_patch_flow.pos_embed"),
    *(
        (f"{official}.{part}", f"{ours}.{our_part}")
        for modules, parts in (
            (_BLOCKS, _BLOCK_PARTS),
            (_HEADS, _HEAD_PARTS),
            (_RESNETS, _RESNET_PARTS),
            (_ATTENTIONS, _ATTENTION_PARTS),
        )
        for official, ours in modules.items()
        for part, our_part in parts.items()
    ),
    ("downs.{level}.4", "down_blocks.{level}.downsamplers.0.conv"),
    ("ups.{level}.4", "up_blocks.{level}.upsamplers.0.conv"),
    ("final_conv.1", "conv_out"),
)
"""Official module -> ours, once :func:`unfuse` has parted the joined projections; up levels count from the deepest."""


def numbering(config: Config, layer: int = 0, **numbers: int) -> dict[str, int]:
    """Positions in an official level: residual block, attention, residual block, attention, resampling."""
    return {"resnet": 2 * layer, "attention": 2 * layer + 1}


def unfuse(state_dict: StateDict) -> dict[str, torch.Tensor]:
    """Gives each of our tensors one official tensor of its own shape.

    The joined projections are parted by rows, as ``...to_qkv[q].weight`` and so on; 1x1x1 convolutions and norms of the
    attention lose their axes of length one. A tensor of another form stays as it is, and the strict loading names it.
    """
    parted: dict[str, torch.Tensor] = {}
    for key, tensor in state_dict.items():
        stem, _, kind = key.rpartition(".")
        if stem.endswith(("attn.qkv", "fn.to_qkv")) and tensor.ndim and tensor.shape[0] % 3 == 0:
            parted |= {f"{stem}[{name}].{kind}": rows for name, rows in zip("qkv", tensor.chunk(3), strict=True)}
        elif key.endswith("fn.norm.gamma") and tensor.ndim == 5 and tensor.shape[1] == tensor.numel():
            parted[key] = tensor.flatten()
        elif key.endswith("fn.to_out.weight") and tensor.ndim == 5 and tensor.shape[2:].numel() == 1:
            parted[key] = tensor.flatten(1)
        else:
            parted[key] = tensor
    return parted


def read_config(state_dict: StateDict) -> Config:
    """Reads a :class:`BiFlowNet3DModel`'s configuration off official tensors that went through :func:`unfuse`.

    Raises:
        ValueError: The tensors belong to another network or contradict each other.
    """
    for pattern, what in _FOREIGN:
        found = next((key for key in state_dict if re.fullmatch(pattern, key)), None)
        if found is not None:
            raise ValueError(f"The checkpoint (tensor {found}) {what}.")
    base, in_channels = require_shape(state_dict, "init_conv.weight", 5)[:2]
    levels = _count(state_dict, r"downs\.(\d+)\.0\.")
    _, tokens, _ = require_shape(state_dict, "pos_embed", 3)
    token_size = require_shape(state_dict, "x_embedder.proj.weight", 5)[-1]
    attention_rows = require_shape(state_dict, "mid_spatial_attn.fn.fn.to_qkv[q].weight", 2)[0]
    hidden = require_shape(state_dict, "IntraPatchFlow_input.0.0.mlp.fc1.weight", 2)[0]
    classes = require_shape(state_dict, "cond_emb.weight", 2)[0] if "cond_emb.weight" in state_dict else None
    return {
        "in_channels": in_channels,
        "out_channels": require_shape(state_dict, "final_conv.1.weight", 5)[0],
        "block_out_channels": tuple(
            require_shape(state_dict, f"downs.{level}.0.block1.proj.weight", 5)[0] for level in range(levels)
        ),
        "attention_levels": tuple(f"downs.{level}.1.fn.norm.gamma" in state_dict for level in range(levels)),
        "num_class_embeds": classes,
        "token_size": token_size,
        "sub_volume_size": _cube_edge(tokens) * token_size,
        "num_mid_dit_layers": _count(state_dict, r"IntraPatchFlow_mid\.(\d+)\."),
        "mlp_ratio": hidden // base,
        "num_attention_heads": attention_rows // _HEAD_DIM,
        "attention_head_dim": _HEAD_DIM,
    }


def read_checkpoint_file(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads the averaged weights (``ema``) of an official training checkpoint, or a bare state dict.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no checkpoint, or holds neither.
    """
    return read_packed_checkpoint(path, "ema")


def _count(state_dict: StateDict, pattern: str) -> int:
    """Number of modules in an official list."""
    return len({match[1] for key in state_dict if (match := re.match(pattern, key))})


def _cube_edge(tokens: int) -> int:
    edge = round(tokens ** (1 / 3))
    if edge**3 != tokens:
        raise ValueError(
            f"The checkpoint has {tokens} tokens a sub-volume, which is no cube; only cubes are supported."
        )
    return edge


MED_BIFLOWNET = Converter(
    model=BiFlowNet3DModel,
    read_config=read_config,
    overrides=(
        "norm_num_groups",
        "norm_eps",
        "num_dit_heads",
        "num_attention_heads",
        "attention_head_dim",
        "axis_order",
    ),
    keys=KEYS,
    numbering=numbering,
    prepare=unfuse,
)
