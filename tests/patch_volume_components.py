"""Tiny latent diffusion pipelines that tests share: two-fold compression, grids of whole 8-voxel sub-volumes."""

from autoencoders import make_autoencoder, make_kl_autoencoder
from biflownets import make_biflownet
from conftest import make_processor, make_unet

from voxdiff import PatchVolumeLDMPipeline
from voxdiff.schedulers import make_scheduler

CHANNELS = {"in_channels": 4, "out_channels": 4}
CLASSES = {
    "brain": {"id": 0, "size": [16, 8, 8], "spacing": [2.0, 2.0, 3.0]},
    "chest": {
        "id": 1,
        "size": [8, 16, 8],
        "spacing": [1.0, 1.0, 1.0],
        "intensity": "window",
        "low": -1000,
        "high": 500,
    },
    "head": {
        "id": 2,
        "size": [16, 8, 8],
        "spacing": [1.0, 1.0, 1.0],
        "intensity": "window",
        "low": -1000,
        "high": 1000,
    },
}
SCALARS = {"age": {"place": 1, "mean": 50.0, "std": 10.0}, "volume": {"place": 0, "mean": 2.0, "std": 0.5}}


def make_patch_volume_pipeline(vae=None, unet=None, scheduler="med-dpm++", processor=None, classes=CLASSES, **config):
    """Three classes on two grids, unless told otherwise."""
    unet = unet or make_biflownet(**CHANNELS)
    pipe = PatchVolumeLDMPipeline(
        vae or make_autoencoder(),
        unet,
        make_scheduler(scheduler),
        processor=(processor or make_processor(size=(8, 8, 16))).to_dict(),
        classes=classes,
        **config,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_scalar_pipeline(*, null_condition=False, optional_scalars=False, **config):
    """Three classes and two scalars, of which all must be given unless told otherwise."""
    dropped = {"null_condition": null_condition, "optional_scalars": optional_scalars}
    return make_patch_volume_pipeline(unet=make_biflownet(**CHANNELS, **dropped, scalar_conditions=SCALARS), **config)


def make_guided_pipeline(**config):
    """Trained with dropped conditions of both kinds: three classes and two scalars."""
    return make_scalar_pipeline(null_condition=True, optional_scalars=True, **config)


def make_plain_pipeline(kl=True):
    """The plain 3D LDM: no condition, latents of a KL autoencoder (or of a VQ-GAN) and a U-Net without attention."""
    vae = make_kl_autoencoder() if kl else make_autoencoder(patch_size=None)
    scheduler = make_scheduler("med-dpm++", clip_sample=not kl)
    return PatchVolumeLDMPipeline(
        vae, make_unet(4, 4), scheduler, processor=make_processor(size=(8, 8, 16)).to_dict(), clip_latents=not kl
    )
