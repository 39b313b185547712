import pytest
import torch
from goldens import load_golden

from voxdiff import convert_state_dict
from voxdiff.models.axis_order import from_network, to_network
from voxdiff.models.discriminator_patch_3d import PatchDiscriminator3D


@pytest.fixture
def discriminator():
    return PatchDiscriminator3D(base_channels=2, num_layers=2)


@pytest.mark.parametrize("factor", ["4x", "8x"])
def test_published_network_agrees_with_the_official_one(factor, tmp_path):
    meta, state, inputs, outputs = load_golden(f"med_autoencoder_{factor}")
    model = convert_state_dict("med-discriminator", state)
    model.save_pretrained(tmp_path)
    for candidate in (model, PatchDiscriminator3D.from_pretrained(tmp_path)):
        with torch.no_grad():
            logits = candidate(from_network(inputs["volume"], "zxy")).logits
        torch.testing.assert_close(to_network(logits, "zxy"), outputs["disc_logits"], atol=meta["atol"], rtol=0)


def test_the_default_is_the_published_configuration():
    with torch.device("meta"):
        assert sum(p.numel() for p in PatchDiscriminator3D().parameters()) == 2_772_321


def test_features_are_the_maps_before_the_logits(discriminator):
    sample = torch.randn(2, 1, 8, 12, 16)
    output = discriminator(sample)
    assert [tuple(feature.shape[1:]) for feature in output.features] == [(2, 5, 7, 9), (4, 3, 4, 5), (8, 4, 5, 6)]
    assert discriminator.blocks[-1](output.features[-1]).equal(output.logits)
    assert output.logits.shape == (2, 1, 5, 6, 7)


def test_gradients_reach_the_volume_and_every_parameter(discriminator):
    sample = torch.randn(2, 1, 8, 8, 8, requires_grad=True)
    discriminator(sample).logits.sum().backward()
    assert sample.grad.any()
    biases_before_norm = {"blocks.1.conv.bias", "blocks.2.conv.bias"}
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad.any() or name in biases_before_norm


def test_wrong_volumes_raise(discriminator):
    with pytest.raises(ValueError, match=r"it takes \(batch, 1, x, y, z\)"):
        discriminator(torch.zeros(1, 8, 8, 8))
    with pytest.raises(ValueError, match="allowed are xyz, zxy"):
        PatchDiscriminator3D(axis_order="zyx")
