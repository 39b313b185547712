"""Tiny autoencoders that tests share: two levels, cubes of eight voxels, at most 32 voxels a side."""

import torch

from voxdiff.models.autoencoder_kl_3d import AutoencoderKL3D
from voxdiff.models.autoencoder_patch_volume import AutoencoderPatchVolume

TINY = {
    "latent_channels": 4,
    "block_out_channels": (8, 8),
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def make_autoencoder(**config):
    """A Patch-Volume autoencoder in evaluation mode whose codebook is spread like its latents."""
    torch.manual_seed(0)
    vae = AutoencoderPatchVolume(**{**TINY, "num_embeddings": 16, "patch_size": 8, **config})
    vae.quantize.embedding.mul_(0.2)
    vae.update_latent_range()
    return vae.eval()


def make_kl_autoencoder(**config):
    torch.manual_seed(0)
    vae = AutoencoderKL3D(**{**TINY, **config})
    vae.update_latent_range(mean=0.1, std=0.3)
    return vae.eval()
