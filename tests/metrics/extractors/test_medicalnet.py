import pytest
import torch
from goldens import load_golden
from safetensors.torch import save_file

from voxdiff.metrics.extractors.medicalnet import build_medicalnet, load_medicalnet
from voxdiff.metrics.extractors.resnet import ResNet, ResNetStyle
from voxdiff.metrics.extractors.weights import file_sha256


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    style = ResNetStyle(spatial_dims=3, in_channels=1, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    path = tmp_path_factory.mktemp("medicalnet") / "medicalnet-resnet10.safetensors"
    save_file(ResNet(10, style).state_dict(), path)
    return path


def test_features_equal_those_of_the_official_network():
    _, state, inputs, outputs = load_golden("medicalnet_features")
    network = build_medicalnet(50, state).eval()
    with torch.inference_mode():
        features = network(inputs["volume"]).mean((2, 3, 4))
    torch.testing.assert_close(features, outputs["features"], rtol=0, atol=1e-5)


def test_the_last_two_layers_keep_the_grid():
    """They dilate instead of striding, which is what tells this network from others with the same tensors."""
    network = ResNet(10, ResNetStyle(spatial_dims=3, in_channels=1, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)))
    with torch.inference_mode():
        assert network(torch.rand(1, 1, 32, 24, 16)).shape == (1, 512, 4, 3, 2)


def test_an_extractor_pins_its_weights_and_input_rule(weights):
    extractor = load_medicalnet(10, weights=weights, input_rule="unit")
    assert extractor.settings()["input_rule"] == "unit"
    assert extractor.sha256 == file_sha256(weights)
    assert extractor(torch.rand(2, 1, 16, 16, 16)).values.shape == (2, extractor.num_features)


def test_the_zscore_rule_is_blind_to_scale_and_offset_and_takes_a_blank_volume(weights):
    extractor = load_medicalnet(10, weights=weights)
    volume = torch.rand(1, 1, 16, 16, 16)
    volumes = torch.cat([volume, 0.3 * volume + 0.1, torch.zeros_like(volume)])
    features = extractor(volumes).values
    torch.testing.assert_close(features[0], features[1], rtol=1e-3, atol=1e-4)
    assert features[2].isfinite().all()


def test_the_rules_differ_as_they_say(weights):
    unit, signed = (load_medicalnet(10, weights=weights, input_rule=rule) for rule in ("unit", "signed"))
    volume = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(unit(2 * volume - 1).values, signed(volume).values)
    assert not torch.equal(unit(volume).values, signed(volume).values)


def test_a_faint_background_hardly_moves_the_zscore_features(weights):
    """Real sets have background 0 and synthetic ones nearly 0: a rule over positive voxels would tell them apart."""
    extractor = load_medicalnet(10, weights=weights)
    volume = torch.zeros(1, 1, 16, 16, 16)
    volume[..., 4:12, 4:12, 4:12] = 0.5 + 0.5 * torch.rand(8, 8, 8)
    features = extractor(torch.cat([volume, volume.clamp_min(1e-3), 0.9 * volume.roll(2, 2)])).values
    faint, other = ((features[0] - features[place]).norm() for place in (1, 2))
    assert faint < 0.02 * other


@pytest.mark.parametrize(
    ("depth", "settings", "complaint"),
    [
        (10, {"input_rule": "minmax"}, "'minmax'; allowed are zscore, unit, signed"),
        (18, {}, "do not fit medicalnet-resnet18.*layer1.1.bn1.bias"),
    ],
)
def test_a_wrong_rule_or_another_depth_is_said(depth, settings, complaint, weights):
    with pytest.raises(ValueError, match=complaint):
        load_medicalnet(depth, weights=weights, **settings)


def test_missing_weights_name_the_publishers_file():
    with pytest.raises(FileNotFoundError, match=r"resnet_50\.pth from https://huggingface\.co/TencentMedicalNet"):
        load_medicalnet(weights=None)
