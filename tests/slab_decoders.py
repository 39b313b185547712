"""Tiny decoders of the two published layouts, for the tests of slab decoding."""

import torch

from voxdiff.models.layers_autoencoder_3d import Decoder3D

WIDTHS = {4: (4, 8, 8), 8: (4, 8, 8, 8)}


def make_decoder(factor, *, block_out_channels=None, dtype=torch.float32):
    """A decoder of latents of four channels, whose norms are not at their initial values."""
    torch.manual_seed(0)
    decoder = Decoder3D(
        4,
        1,
        block_out_channels or WIDTHS[factor],
        num_attention_heads=2,
        attention_head_dim=4,
        norm_num_groups=4,
        norm_eps=1e-6,
    )
    for parameter in decoder.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    return decoder.to(dtype).eval()
