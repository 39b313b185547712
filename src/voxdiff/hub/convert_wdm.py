"""Official state dicts of WDM and cWDM (Friedrich et al. 2024): the plain 3D U-Net with either kind of skips."""

import re
from functools import partial

from voxdiff.hub.adm_layout import RESNET_PARTS, read_depth
from voxdiff.hub.state_dicts import Config, Converter, StateDict, require_shape
from voxdiff.models.unet_wavelet_3d import WaveletUNet3DModel

_BANDS = 8

_FOREIGN = (
    (r"out_res\..*", "is a WavU-Net, of which no weights are public; only the plain U-Net is supported"),
    (r".*\.qkv\..*", "has attention layers, which no published model has; only models without attention are supported"),
    (r"label_emb\..*", "is class-conditional, which no published model is; only models without classes are supported"),
    (
        r".*\.(op|conv)\.(weight|bias)",
        "resamples with convolutions; only models with resblock_updown=True are supported",
    ),
)

_RESNETS = (
    ("input_blocks.{encoder}.0", "down_blocks.{level}.resnets.{layer}"),
    ("input_blocks.{halving}.0", "down_blocks.{level}.downsamplers.0"),
    ("middle_block.{layer}", "mid_block.resnets.{layer}"),
    ("output_blocks.{decoder}.0", "up_blocks.{level}.resnets.{layer}"),
    ("output_blocks.{doubling}.1", "up_blocks.{level}.upsamplers.0"),
)

KEYS = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    *(
        (f"{block}.{part}", f"{our_block}.{our_part}")
        for block, our_block in _RESNETS
        for part, our_part in RESNET_PARTS
    ),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)
"""Official module -> ours. Levels count from the shallowest in the encoder, from the deepest in the decoder."""


def numbering(config: Config, level: int = 0, layer: int = 0) -> dict[str, int]:
    """Positions in the official flat lists of blocks; the stem is the encoder's first entry."""
    layers = config["layers_per_block"]
    first = level * (layers + 1)
    return {
        "encoder": 1 + first + layer,
        "halving": 1 + first + layers,
        "decoder": first + layer,
        "doubling": first + layers,
    }


def read_config(state_dict: StateDict, conditional: bool) -> Config:
    """Reads a :class:`WaveletUNet3DModel`'s configuration off an official state dict.

    Args:
        state_dict: Official names and tensors.
        conditional: Whether condition volumes join the noisy one (cWDM), or nothing does (WDM).

    Raises:
        ValueError: The tensors belong to another network or contradict each other.
    """
    for pattern, what in _FOREIGN:
        found = next((key for key in state_dict if re.fullmatch(pattern, key)), None)
        if found is not None:
            raise ValueError(f"The checkpoint (tensor {found}) {what}.")
    in_channels = require_shape(state_dict, "input_blocks.0.0.weight", 5)[1]
    out_channels = require_shape(state_dict, "out.2.weight", 5)[0]
    _check_conditions(in_channels, out_channels, conditional)
    levels, layers = read_depth(state_dict, r"1\.")
    firsts = [numbering({"layers_per_block": layers}, level)["encoder"] for level in range(levels)]
    widths = [require_shape(state_dict, f"input_blocks.{block}.0.out_layers.3.weight", 5)[0] for block in firsts]
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": tuple(widths),
        "layers_per_block": layers,
        "skip_mode": _skip_mode(state_dict, widths[-1]),
    }


def _check_conditions(in_channels: int, out_channels: int, conditional: bool) -> None:
    extra = in_channels - out_channels
    channels = f"The checkpoint has {in_channels} input and {out_channels} output channels"
    if not conditional and extra:
        raise ValueError(f"{channels}, but 'wdm' has as many of each; a model with condition volumes is 'cwdm'.")
    if conditional and (extra <= 0 or extra % _BANDS):
        raise ValueError(
            f"{channels}, but 'cwdm' has {_BANDS} more for each condition volume; an unconditional model is 'wdm'."
        )


def _skip_mode(state_dict: StateDict, deepest: int) -> str:
    (width,) = require_shape(state_dict, "output_blocks.0.0.in_layers.0.weight", 1)
    modes = {deepest: "additive", 2 * deepest: "concat"}
    if width not in modes:
        raise ValueError(
            f"The first decoder block takes {width} channels, neither {deepest} (additive skips) nor {2 * deepest} "
            "(concatenated skips); give the state dict as it was published."
        )
    return modes[width]


def _converter(conditional: bool) -> Converter:
    return Converter(
        model=WaveletUNet3DModel,
        read_config=partial(read_config, conditional=conditional),
        overrides=("norm_num_groups", "norm_eps"),
        keys=KEYS,
        numbering=numbering,
    )


WDM = _converter(conditional=False)
CWDM = _converter(conditional=True)
