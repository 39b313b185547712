import pytest
import torch

from voxdiff.training.informed_slice_arguments import InformedSliceArguments
from voxdiff.training.slice_autoencoder_arguments import SliceAutoencoderArguments


def test_the_default_widths_are_those_of_kl_f8():
    with torch.device("meta"):
        vae = SliceAutoencoderArguments(vae_channels=3).make_autoencoder(
            InformedSliceArguments(stage="autoencoder"), 512
        )
    assert round(sum(weight.numel() for weight in vae.parameters()) / 1e6, 1) == 83.7
    assert (vae.config["latent_channels"], vae.config["in_channels"], vae.config["sample_size"]) == (4, 3, 512)


def test_options_reach_the_network_and_the_losses():
    model = InformedSliceArguments(stage="autoencoder", block_out_channels="4,8", norm_num_groups=2, layers_per_block=1)
    arguments = SliceAutoencoderArguments(latent_channels=3, kl_weight=0.1, perceptual_weight=0, mask_share=0.5)
    vae = arguments.make_autoencoder(model, 16)
    assert (vae.config["latent_channels"], vae.config["in_channels"], vae.config["layers_per_block"]) == (3, 1, 1)
    assert vae(torch.randn(1, 1, 8, 12)).sample.shape == (1, 1, 8, 12)
    assert (arguments.loss_weights.kl, arguments.loss_weights.perceptual) == (0.1, 0)
    assert SliceAutoencoderArguments().loss_weights.perceptual == 0.5
    assert SliceAutoencoderArguments().share_of_masks == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vae_channels": 2}, "--vae_channels is 2; choose 1 or 3"),
        ({"latent_channels": 0}, "--latent_channels is 0"),
        ({"num_held_out": 0}, "--num_held_out is 0"),
        ({"kl_weight": -1.0}, "--kl_weight is -1.0"),
        ({"mask_share": 1.0}, "--mask_share is 1.0; give a share"),
        ({"perceptual_weight": 0.0, "lpips_weights": "x"}, "--lpips_weights belongs to a --perceptual_weight above 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SliceAutoencoderArguments(**options)


def test_options_of_another_stage_are_refused():
    with pytest.raises(ValueError, match="--mask_share belongs to --stage autoencoder"):
        SliceAutoencoderArguments(mask_share=0.5).require_stage(InformedSliceArguments(stage="slice", vae="x"))
    pretrained = InformedSliceArguments(stage="autoencoder", pretrained_model_name_or_path="x")
    SliceAutoencoderArguments(mask_share=0.5).require_stage(pretrained)
    with pytest.raises(ValueError, match="--latent_channels comes from the pretrained model"):
        SliceAutoencoderArguments(latent_channels=4).require_stage(pretrained)
