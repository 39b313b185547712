"""What official U-Nets of the guided-diffusion family have in common: flat lists of blocks, and a block's modules."""

import re

from voxdiff.hub.state_dicts import StateDict

RESNET_PARTS = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)
"""Official module of a residual block -> ours."""


def read_depth(state_dict: StateDict, upsampling: str) -> tuple[int, int]:
    """Number of levels and of residual blocks a level: every level but the shallowest ends in an upsampling.

    Args:
        state_dict: Official names and tensors.
        upsampling: Pattern of what follows ``output_blocks.<number>.`` where a block upsamples.

    Raises:
        ValueError: The blocks do not make equal levels.
    """
    blocks = {match[1] for key in state_dict if (match := re.match(r"output_blocks\.(\d+)\.0\.", key))}
    doublings = {match[1] for key in state_dict if (match := re.match(rf"output_blocks\.(\d+)\.{upsampling}", key))}
    levels = len(doublings) + 1
    if len(blocks) % levels or len(blocks) < 2 * levels:
        raise ValueError(
            f"The state dict has {len(blocks)} output_blocks, {len(doublings)} of which upsample, which does not make "
            f"{levels} equal levels; give the state dict as it was published."
        )
    return levels, len(blocks) // levels - 1
