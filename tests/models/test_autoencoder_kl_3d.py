import pytest
import torch
from autoencoders import make_autoencoder, make_kl_autoencoder

from voxdiff import AutoencoderKL3D
from voxdiff.models.autoencoder_kl_3d import LatentNormal


@pytest.fixture
def vae():
    return make_kl_autoencoder()


def volume(*size):
    return torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_it_loads_what_it_saves(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    loaded = AutoencoderKL3D.from_pretrained(tmp_path)
    assert (loaded.config.latent_mean, loaded.config.latent_std) == (0.1, 0.3)
    latents = vae.encode(volume(8, 4, 6)).latents
    assert latents.shape == (1, *vae.latent_shape((8, 4, 6))) == (1, 4, 4, 2, 3)
    assert loaded.encode(volume(8, 4, 6)).latents.equal(latents)
    assert loaded.decode(latents).sample.equal(vae.decode(latents).sample)
    assert loaded.decode(latents).sample.shape == (1, 1, 8, 4, 6)


@torch.no_grad()
def test_the_decoder_is_that_of_the_vector_quantised_one(vae):
    other = make_autoencoder(axis_order="xyz")
    other.decoder.load_state_dict(vae.decoder.state_dict())
    other.post_quant_conv.load_state_dict(vae.post_quant_conv.state_dict())
    latents = torch.randn(1, 4, 4, 3, 2)
    assert other.decode(latents, quantize=False).sample.equal(vae.decode(latents).sample)


@torch.no_grad()
def test_training_draws_from_the_posterior_and_evaluation_takes_its_mean(vae):
    sample = volume(8, 8, 8)
    posterior = vae.encode(sample).latent_dist
    torch.testing.assert_close(vae(sample).sample, vae.decode(posterior.mean).sample)
    drawn = vae.train()(sample, torch.Generator().manual_seed(3)).sample
    expected = vae.decode(posterior.sample(torch.Generator().manual_seed(3))).sample
    torch.testing.assert_close(drawn, expected)
    assert (drawn - vae.eval()(sample).sample).abs().max() > 1e-3


def test_samples_have_the_mean_and_deviation():
    normal = LatentNormal(
        torch.full((1, 1, 40, 40, 40), 2.0), torch.full((1, 1, 40, 40, 40), 2 * torch.log(torch.tensor(3.0)).item())
    )
    drawn = normal.sample(torch.Generator().manual_seed(0))
    assert abs(drawn.mean() - 2) < 0.05 and abs(drawn.std() - 3) < 0.05


def test_the_divergence_is_torch_s(vae):
    normal = LatentNormal(torch.randn(2, 4, 2, 3, 2), torch.randn(2, 4, 2, 3, 2))
    distribution = torch.distributions.Normal(normal.mean, torch.exp(normal.log_variance / 2))
    expected = torch.distributions.kl_divergence(distribution, torch.distributions.Normal(0.0, 1.0)).sum() / 2
    torch.testing.assert_close(normal.kl(), expected)


def test_every_parameter_gets_a_gradient(vae):
    output = vae.train()(volume(8, 8, 8))
    (output.sample.square().mean() + 1e-3 * output.kl).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in vae.parameters())


def test_normalisation_is_the_closed_form_and_inverts(vae):
    latents = torch.tensor([0.1, 0.4, -0.5]).view(1, 1, 3, 1, 1)
    normal = torch.tensor([0.0, 1, -2]).view(1, 1, 3, 1, 1)
    torch.testing.assert_close(vae.normalize_latents(latents), normal)
    torch.testing.assert_close(vae.denormalize_latents(normal), latents)


@torch.no_grad()
def test_bfloat16_stays_close(vae):
    sample = volume(8, 8, 8)
    reference = vae(sample).sample
    result = vae.to(torch.bfloat16)(sample.bfloat16()).sample
    assert result.dtype == torch.bfloat16
    assert (result.float() - reference).abs().max() < 0.05 * reference.abs().max()


def test_wrong_statistics_and_grids_raise(vae):
    fresh = AutoencoderKL3D(block_out_channels=(4, 4), norm_num_groups=2)
    with pytest.raises(ValueError, match=r"call update_latent_range\(mean, std\)"):
        fresh.normalize_latents(torch.zeros(1))
    with pytest.raises(ValueError, match="the latter above 0"):
        vae.update_latent_range(0.0, 0.0)
    with pytest.raises(ValueError, match="give both"):
        AutoencoderKL3D(latent_std=1.0)
    with pytest.raises(ValueError, match="divisible by 2: use 4 or 6 along x"):
        vae.encode(torch.zeros(1, 1, 5, 4, 4))


def test_the_second_stage_trains_the_decoder_alone():
    vae = make_kl_autoencoder(patch_size=4)
    vae.freeze_encoder()
    vae.train()(volume(8, 4, 4)).sample.square().mean().backward()
    learning = {name.split(".")[0] for name, weight in vae.named_parameters() if weight.grad is not None}
    assert learning == {"decoder", "post_quant_conv"}
