"""The tiny network of slice-conditioned diffusion that every test shares."""

import torch

from voxdiff import SliceConditionedUNetModel

TINY = {"block_out_channels": (4, 8), "attention_levels": (False, True), "layers_per_block": 1}
TINY |= {"num_attention_heads": 2, "norm_num_groups": 2}


def make_slice_conditioned_unet(**changes):
    """A network as if trained: no layer is zero."""
    torch.manual_seed(0)
    model = SliceConditionedUNetModel(**{**TINY, **changes})
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def make_slices(batch=2, slots=6, grid=(4, 8), channels=1, seed=1):
    """Arguments of the network: the slots 1 and 4 of each sample are known, and slot 0 of the last one."""
    random = torch.Generator().manual_seed(seed)
    shape = (batch, channels, *grid, slots)
    known = torch.zeros(batch, slots, dtype=torch.bool)
    known[:, [1, 4]] = True
    known[-1, 0] = True
    return {
        "sample": torch.randn(shape, generator=random),
        "known_slices": torch.randn(shape, generator=random),
        "known": known,
        "positions": torch.stack([torch.randperm(40, generator=random)[:slots].float() for _ in range(batch)]),
    }
