import pytest
import torch
from autoencoders import make_autoencoder
from patch_volume_components import make_patch_volume_pipeline, make_plain_pipeline

from voxdiff import PatchVolumeLDMPipeline


@pytest.mark.parametrize("make", [make_patch_volume_pipeline, make_plain_pipeline])
def test_a_saved_pipeline_knows_what_its_latents_are(make, tmp_path):
    pipe = make()
    low, high = pipe.vae.denormalize_latents(torch.tensor([-1.0, 1.0])).tolist()
    make().save_pretrained(tmp_path)
    again = PatchVolumeLDMPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.config["latent_range"] == {"low": low, "high": high}


def test_another_autoencoder_is_not_taken_for_its_own(tmp_path):
    make_patch_volume_pipeline().save_pretrained(tmp_path)
    other = make_autoencoder()
    other.quantize.embedding.mul_(5)
    other.update_latent_range()
    with pytest.raises(ValueError, match=r"trained on latents scaled from .*; use the autoencoder that it was trained"):
        PatchVolumeLDMPipeline.from_pretrained(tmp_path, vae=other)


@pytest.mark.parametrize("latent_range", [{"low": 0.0}, {"low": 0.0, "high": 1.0, "mean": 0.5}, (0.0, 1.0)])
def test_a_range_without_its_ends_is_refused(latent_range):
    parts = make_patch_volume_pipeline()
    with pytest.raises(ValueError, match=r'latent_range is .*; give \{"low": ..., "high": ...\}, or leave it out'):
        PatchVolumeLDMPipeline(parts.vae, parts.unet, parts.scheduler, latent_range=latent_range)
