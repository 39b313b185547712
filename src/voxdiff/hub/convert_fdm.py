"""Official state dicts of FDM (Harvey et al. 2022), the network that cDPM uses: video U-Nets with factorised attention."""

import re
from itertools import product

from voxdiff.hub.adm_layout import RESNET_PARTS, read_depth
from voxdiff.hub.convert_gem import numbering
from voxdiff.hub.state_dicts import Config, Converter, StateDict, require_shape
from voxdiff.models.unet_slice_conditioned import SliceConditionedUNetModel

_FOREIGN = (
    (r".*_tem\..*", "has volumetric layers as GEM-3D's; convert it with 'gem3d-stage2'"),
    (r".*\.transformer_blocks\..*", "has cross-attention as GEM-3D's slice generator; convert it with 'gem3d-slice'"),
    (
        r".*\.rpe_[qkv]\.(?!rpe_net\.).*",
        "looks relative positions up in a table; only networks with use_rpe_net=True are supported",
    ),
    (r"label_emb\..*", "is class-conditional; only networks without classes are supported"),
)

_RESNETS = (
    ("input_blocks.{encoder}.0", "down_blocks.{level}.resnets.{layer}"),
    ("middle_block.0", "mid_block.resnets.0"),
    ("middle_block.2", "mid_block.resnets.1"),
    ("output_blocks.{decoder}.0", "up_blocks.{level}.resnets.{layer}"),
)
_ATTENTIONS = (
    ("input_blocks.{encoder}.1", "down_blocks.{level}.attentions.{layer}"),
    ("middle_block.1", "mid_block.attentions.0"),
    ("output_blocks.{decoder}.1", "up_blocks.{level}.attentions.{layer}"),
)
_ATTENTION_KINDS = (("temporal_attention", "slice_attention"), ("spatial_attention", "pixel_attention"))
_ATTENTION_PARTS = (
    ("norm", "group_norm"),
    *((f"qkv[{name}]", f"to_{name}") for name in "qkv"),
    ("proj_out", "to_out.0"),
)
_RELATIVE_PARTS = (
    ("embed_distances", "distance_proj"),
    ("embed_diffusion_time", "time_emb_proj"),
    ("out", "out"),
)

KEYS = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    *(
        (f"{block}.{part}", f"{our_block}.{our_part}")
        for (block, our_block), (part, our_part) in product(_RESNETS, RESNET_PARTS)
    ),
    *(
        (f"{block}.{kind}.{part}", f"{our_block}.{our_kind}.{our_part}")
        for (block, our_block), (kind, our_kind), (part, our_part) in product(
            _ATTENTIONS, _ATTENTION_KINDS, _ATTENTION_PARTS
        )
    ),
    *(
        (
            f"{block}.temporal_attention.rpe_{name}.rpe_net.{part}",
            f"{our_block}.slice_attention.relative_{name}.{our_part}",
        )
        for (block, our_block), name, (part, our_part) in product(_ATTENTIONS, "qkv", _RELATIVE_PARTS)
    ),
    ("input_blocks.{halving}.0.op", "down_blocks.{level}.downsamplers.0.conv"),
    ("output_blocks.{doubling}.{upsampler}.conv", "up_blocks.{level}.upsamplers.0.conv"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)
"""Official module -> ours, once :func:`split_projections` parted the projections; up levels count from the deepest."""


def split_projections(state_dict: StateDict) -> StateDict:
    """Parts the joined projections, as ``...qkv[q].weight`` and so on: all queries come first, then keys, then values.

    Raises:
        ValueError: A projection has no such three equal parts.
    """
    tensors = {}
    for key, tensor in state_dict.items():
        module, _, kind = key.rpartition(".")
        if not module.endswith(".qkv"):
            tensors[key] = tensor
            continue
        if not tensor.ndim or tensor.shape[0] % 3:
            raise ValueError(
                f"The tensor {key} of shape {tuple(tensor.shape)} is no projection to queries, keys and values; give the "
                "state dict as it was published."
            )
        tensors |= {f"{module}[{name}].{kind}": part for name, part in zip("qkv", tensor.chunk(3), strict=True)}
    return tensors


def read_config(state_dict: StateDict) -> Config:
    """Reads a :class:`SliceConditionedUNetModel`'s configuration off tensors whose projections are parted.

    Raises:
        ValueError: The tensors belong to another network or contradict each other.
    """
    for pattern, what in _FOREIGN:
        found = next((key for key in state_dict if re.fullmatch(pattern, key)), None)
        if found is not None:
            raise ValueError(f"The state dict (tensor {found}) {what}.")
    levels, layers = read_depth(state_dict, r"[12]\.conv\.")
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    widths = tuple(require_shape(state_dict, f"input_blocks.{block}.0.out_layers.3.weight", 4)[0] for block in firsts)
    embedding = require_shape(state_dict, "input_blocks.1.0.emb_layers.1.weight", 2)[0]
    return {
        "in_channels": require_shape(state_dict, "input_blocks.0.0.weight", 4)[1] - 1,
        "out_channels": require_shape(state_dict, "out.2.weight", 4)[0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "attention_levels": tuple(
            f"input_blocks.{block}.1.temporal_attention.norm.weight" in state_dict for block in firsts
        ),
        "scale_shift_norm": embedding == 2 * widths[0],
    }


FDM = Converter(
    model=SliceConditionedUNetModel,
    read_config=read_config,
    overrides=("num_attention_heads", "norm_num_groups", "norm_eps"),
    keys=KEYS,
    numbering=numbering,
    prepare=split_projections,
)
