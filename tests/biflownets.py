"""The tiny BiFlowNet that several test files share."""

import torch

from voxdiff.models.biflownet_3d import BiFlowNet3DModel

TINY = {
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (6, 6),
    "attention_levels": (False, False),
    "num_class_embeds": 3,
    "sub_volume_size": 4,
    "num_mid_dit_layers": 0,
    "num_dit_heads": 2,
    "mlp_ratio": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "norm_num_groups": 3,
}
DEEP = {"block_out_channels": (4, 4, 8), "attention_levels": (False, False, True), "norm_num_groups": 2}
DEEP |= {"intra_patch": None}


def make_biflownet(**changes):
    """A tiny network of which no weight is zero."""
    torch.manual_seed(0)
    model = BiFlowNet3DModel(**{**TINY, **changes})
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def make_sample(*grid, batch=1):
    return torch.randn(batch, 2, *(grid or (4, 8, 4)), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def predict(model, sample, timestep=417, label=1, **conditions):
    labels = None if model.config["num_class_embeds"] is None else torch.full((sample.shape[0],), label)
    return model(sample, timestep, labels, **conditions).sample
