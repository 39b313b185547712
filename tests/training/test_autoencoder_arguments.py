import pytest
from autoencoders import make_autoencoder, make_kl_autoencoder

from voxdiff.training.autoencoder_arguments import PUBLISHED_RUNS, AutoencoderArguments, AutoencoderDataArguments
from voxdiff.training.objective_autoencoder import AutoencoderLossWeights


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"stage": "both"}, "--stage is 'both'; choose one of patch, volume"),
        ({"autoencoder": "gan"}, "--autoencoder is 'gan'; choose vq or kl"),
        ({"stage": "volume"}, "--stage volume needs the patch stage"),
        ({"l1_weight": -1.0}, "--l1_weight is -1.0; give a number of at least 0"),
        ({"kl_weight": float("nan")}, "--kl_weight is nan"),
        ({"adversarial_start": -1}, "--adversarial_start is -1"),
        ({"num_held_out": 0}, "--num_held_out is 0; give at least one volume"),
        ({"patches_per_volume": 0}, "--patches_per_volume is 0"),
        ({"autoencoder": "kl", "num_embeddings": 16}, "--num_embeddings belongs to --autoencoder vq"),
        ({"pretrained_model_name_or_path": "x", "patch_size": "8"}, "--patch_size comes from the pretrained"),
        ({"discriminator": "x", "discriminator_layers": 3}, "--discriminator_layers comes from the pretrained"),
        ({"adversarial_weight": 0, "feature_matching_weight": 4.0}, "--feature_matching_weight belongs to an --adv"),
        ({"adversarial_weight": 0, "adversarial_start": 0}, "--adversarial_start belongs to an --adversarial_weight"),
        ({"adversarial_weight": 0, "discriminator": "x"}, "--discriminator belongs to an --adversarial_weight above 0"),
        ({"perceptual_weight": 0, "perceptual_share": 0.2}, "--perceptual_share belongs to a --perceptual_weight"),
        ({"perceptual_weight": 0, "lpips_weights": "x"}, "--lpips_weights belongs to a --perceptual_weight above 0"),
        ({"stage": "volume", "pretrained_model_name_or_path": "x", "kl_weight": 1.0}, "--kl_weight belongs to --stage"),
    ],
)
def test_a_mistake_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        AutoencoderArguments(**options)


def test_data_are_asked_for_without_what_belongs_to_diffusion():
    with pytest.raises(ValueError, match=r"--cohort mr,ct for the simulated cohort\.$"):
        AutoencoderDataArguments()
    with pytest.raises(TypeError):
        AutoencoderDataArguments(cohort="mr", scalar_columns="age")


def test_the_defaults_are_the_published_autoencoder(monkeypatch):
    seen = {}
    for name in ("AutoencoderPatchVolume", "AutoencoderKL3D"):
        monkeypatch.setattr(f"voxdiff.training.autoencoder_arguments.{name}", lambda **config: seen.update(config))
    AutoencoderArguments().make_autoencoder()
    assert seen == {"axis_order": "xyz"}
    AutoencoderArguments(block_out_channels="8,16", patch_size="none", num_embeddings=32).make_autoencoder()
    assert seen == {
        "axis_order": "xyz",
        "block_out_channels": (8, 16),
        "patch_size": None,
        "num_embeddings": 32,
    }
    with pytest.raises(ValueError, match="--patch_size is '8,8'; give one number of voxels, or none"):
        AutoencoderArguments(patch_size="8,8").make_autoencoder()


@pytest.mark.parametrize(
    ("options", "rate", "batch", "start"),
    [
        ({}, 3e-4, 24, 20_000),
        ({"block_out_channels": "48,96,96"}, 3e-4, 16, 12_000),
        ({"stage": "volume", "pretrained_model_name_or_path": "x"}, 3e-5, 1, 0),
        ({"adversarial_start": 7}, 3e-4, 24, 7),
    ],
)
def test_a_run_is_the_published_one_of_its_stage_and_compression(options, rate, batch, start):
    arguments = AutoencoderArguments(**options)
    assert PUBLISHED_RUNS[arguments.published_run] == {"learning_rate": rate, "train_batch_size": batch}
    assert arguments.first_adversarial_step == start


def test_losses_that_were_not_weighted_have_the_published_weights():
    vae, plain = make_autoencoder(), make_kl_autoencoder()
    assert AutoencoderArguments().loss_weights(vae) == AutoencoderLossWeights()
    chosen = AutoencoderArguments(autoencoder="kl", kl_weight=0.5, l1_weight=1.0).loss_weights(plain)
    assert chosen == AutoencoderLossWeights(l1=1.0, kl=0.5)
    with pytest.raises(ValueError, match="--kl_weight belongs to --autoencoder kl"):
        AutoencoderArguments(pretrained_model_name_or_path="x", kl_weight=0.5).loss_weights(vae)


def test_the_discriminator_is_the_one_that_was_asked_for(tmp_path):
    arguments = AutoencoderArguments(discriminator_channels=2, discriminator_layers=1)
    first = arguments.make_discriminator()
    assert (first.config["base_channels"], first.config["num_layers"]) == (2, 1)
    first.save_pretrained(tmp_path)
    again = AutoencoderArguments(discriminator=str(tmp_path)).make_discriminator()
    assert all(tensor.equal(first.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert AutoencoderArguments(adversarial_weight=0).make_discriminator() is None


def test_each_stage_sees_crops_of_its_own():
    patch, volume = AutoencoderArguments(), AutoencoderArguments(stage="volume", pretrained_model_name_or_path="x")
    vae, plain = make_autoencoder(), make_kl_autoencoder()
    assert patch.crop_of(vae, [(16, 16, 16)]) == (8, 8, 8)
    assert volume.crop_of(vae, [(16, 16, 24)]) is None
    assert volume.crop_of(vae, [(256, 256, 128)]) is None
    assert volume.crop_of(vae, [(256, 256, 256)]) == (256, 256, 128)
    eight = make_kl_autoencoder(block_out_channels=(4, 4, 4, 4))
    assert patch.crop_of(eight, [(256, 256, 256)]) == (192, 192, 192)
    assert patch.crop_of(plain, [(16, 16, 16)]) is None
    assert AutoencoderArguments(crop_size="8,8,4").crop_of(plain, [(16, 16, 16)]) == (8, 8, 4)


@pytest.mark.parametrize(
    ("options", "vae", "grids", "sentence"),
    [
        ({"crop_size": "8"}, make_autoencoder, [(16, 16, 16)], "--crop_size belongs to --stage volume"),
        ({"stage": "volume"}, make_kl_autoencoder, [(16, 16, 16)], "it has no --stage volume"),
        ({"stage": "volume"}, make_autoencoder, [(16, 16, 12)], "every side divisible by 8"),
        ({"stage": "volume", "crop_size": "12"}, make_autoencoder, [(16, 16, 16)], "every side divisible by 8"),
        ({"crop_size": "5"}, make_kl_autoencoder, [(16, 16, 16)], "every side divisible by 2"),
    ],
)
def test_crops_that_do_not_fit_are_refused(options, vae, grids, sentence):
    start = {"pretrained_model_name_or_path": "x"} if "stage" in options else {}
    with pytest.raises(ValueError, match=sentence):
        AutoencoderArguments(**options, **start).crop_of(vae(), grids)
