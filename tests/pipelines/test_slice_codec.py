import pytest
import torch
from informed_slice_pipelines import make_slice_autoencoder

from voxdiff.pipelines.slice_codec import decode_slices, encode_slices, slice_compression


@pytest.fixture
def vae():
    return make_slice_autoencoder()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_each_slice_is_encoded_by_its_mean_and_scaled(vae):
    volumes = torch.randn(2, 1, 8, 12, 5)
    latents = encode_slices(vae, volumes)
    assert latents.shape == (2, 4, 4, 6, 5) and slice_compression(vae) == 2
    one = vae.encode(volumes[1:, ..., 3]).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(latents[1:, ..., 3], one)


def test_each_latent_is_decoded_alone(vae):
    latents = torch.randn(2, 4, 4, 6, 5)
    volumes = decode_slices(vae, latents, slices_per_call=3)
    assert volumes.shape == (2, 1, 8, 12, 5)
    one = vae.decode(latents[1:, ..., 3] / vae.config.scaling_factor).sample
    torch.testing.assert_close(volumes[1:, ..., 3], one)


def test_equal_slices_are_encoded_once_and_a_few_at_a_time(vae, monkeypatch):
    volumes = torch.randn(2, 1, 8, 8, 6)
    volumes[..., 2:5] = -1
    reference = encode_slices(vae, volumes)
    sizes, encode = [], vae.encode
    monkeypatch.setattr(vae, "encode", lambda images: sizes.append(len(images)) or encode(images))
    torch.testing.assert_close(encode_slices(vae, volumes, slices_per_call=4), reference)
    assert sizes == [4, 3]


def test_a_colour_autoencoder_sees_grey_and_gives_its_first_channel():
    vae = make_slice_autoencoder(channels=3)
    volumes = torch.randn(1, 1, 8, 8, 2)
    latents = encode_slices(vae, volumes)
    grey = vae.encode(volumes[..., 1].expand(-1, 3, -1, -1)).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(latents[..., 1], grey)
    colours = vae.decode(latents[..., 1] / vae.config.scaling_factor).sample
    torch.testing.assert_close(decode_slices(vae, latents)[..., 1], colours[:, :1])


def test_half_precision_gives_float32(vae):
    vae.to(torch.bfloat16)
    latents = encode_slices(vae, torch.randn(1, 1, 8, 8, 2))
    assert latents.dtype == decode_slices(vae, latents).dtype == torch.float32


@pytest.mark.parametrize("shape", [(8, 8, 2), (1, 3, 8, 8, 2), (1, 1, 8, 9, 2)])
def test_volumes_of_another_shape_raise(vae, shape):
    with pytest.raises(ValueError, match=r"give \(batch, 1, x, y, z\) with x and y divisible by 2"):
        encode_slices(vae, torch.zeros(shape))


def test_latents_that_are_not_finite_raise(vae):
    with pytest.raises(ValueError, match="not finite"):
        decode_slices(vae, torch.full((1, 4, 4, 4, 1), torch.nan))
