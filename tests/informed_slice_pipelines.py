"""Tiny informed-slice pipelines that tests share: eight-voxel slices, four-fold compression, windows of four."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from voxdiff import InformedSlicePipeline, InformedSliceUNetModel, VolumeProcessor
from voxdiff.schedulers import make_scheduler

MASK_VALUES = {0: -1.0, 1: 0.0, 2: 1.0}
TINY_UNET = {
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "attention_levels": (False, True),
    "attention_head_dim": 4,
    "norm_num_groups": 2,
    "window": 4,
}


def randomize(model, std=0.1):
    """Give what is zero or the identity at initialisation weights that show in the output."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 3 or not parameter.any():
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def make_slice_autoencoder(channels=1):
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        scaling_factor=0.5,
        mid_block_add_attention=False,
    ).eval()


def make_informed_unet(in_channels=12, **config):
    torch.manual_seed(0)
    return randomize(InformedSliceUNetModel(in_channels, **{**TINY_UNET, **config}))


def make_slice_generator(out_channels=4):
    torch.manual_seed(0)
    return randomize(
        UNet2DConditionModel(
            in_channels=4,
            out_channels=out_channels,
            block_out_channels=(4, 8),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            mid_block_type=None,
            attention_head_dim=[1, 2],
            cross_attention_dim=8,
            norm_num_groups=2,
        )
    )


def make_informed_pipeline(unet=None, scheduler="gem-dpm++", vae=None, slice_unet=None, processor=None, **config):
    pipe = InformedSlicePipeline(
        vae or make_slice_autoencoder(),
        unet or make_informed_unet(),
        make_scheduler(scheduler),
        slice_unet=slice_unet,
        processor=(processor or VolumeProcessor(intensity="window", low=-1, high=1, unit="a.u.")).to_dict(),
        **{"mask_values": {str(label): value for label, value in MASK_VALUES.items()}, **config},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
