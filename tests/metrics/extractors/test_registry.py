import pytest
import torch
from safetensors.torch import save_file

from voxdiff.metrics.extractors import registry
from voxdiff.metrics.extractors.radimagenet import STYLES
from voxdiff.metrics.extractors.registry import EXTRACTORS, convert_extractor_weights, convertible, load_extractor
from voxdiff.metrics.extractors.resnet import ResNet, ResNetStyle

STYLE = ResNetStyle(spatial_dims=3, in_channels=1, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "medicalnet.safetensors"
    save_file(ResNet(10, STYLE).state_dict(), path)
    return path


def test_all_names_are_listed():
    assert EXTRACTORS[:4] == ("cohort-3d", "cohort-2d", "deepbet", "medicalnet-resnet50")
    assert {"medicalnet-resnet10", "radimagenet-resnet50"} < set(EXTRACTORS)


def test_weights_and_variant_can_stand_in_the_name(weights):
    extractor = load_extractor(f"medicalnet-resnet10:unit={weights}")
    assert (extractor.name, extractor.input_rule) == ("medicalnet-resnet10:unit", "unit")
    assert extractor.sha256 == load_extractor("medicalnet-resnet10", weights=weights).sha256


def test_a_transformers_folder_is_passed_on_as_it_is(monkeypatch):
    asked = []
    monkeypatch.setattr(registry, "load_transformers", lambda name, device: asked.append(name))
    load_extractor("transformers:/a=b/rad:dino")
    assert asked == ["/a=b/rad:dino"]


@pytest.mark.parametrize(
    ("name", "weights", "complaint"),
    [
        ("inception", None, "no extractor 'inception'; known are cohort-3d, cohort-2d, deepbet, medicalnet-resnet50"),
        ("radimagenet-resnet50:unit", None, "variant 'unit'; it has none"),
        ("medicalnet-resnet50:minmax", None, "'minmax'; allowed are zscore"),
        ("deepbet:large", None, "variant 'large'"),
        ("deepbet", "a.safetensors", "brings its own weights"),
        ("cohort-3d=a.safetensors", None, "brings its own weights"),
        ("medicalnet-resnet50=a.safetensors", "b.safetensors", "Weights were given twice"),
    ],
)
def test_what_cannot_be_loaded_is_said(name, weights, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_extractor(name, weights=weights)


def test_a_publishers_pickle_becomes_an_extractor(tmp_path):
    network = ResNet(10, STYLE)
    published = {f"module.{key}": tensor for key, tensor in network.state_dict().items()}
    torch.save({"state_dict": {**published, "module.conv_seg.0.weight": torch.rand(4)}}, tmp_path / "resnet_10.pth")
    left_out = convert_extractor_weights("medicalnet-resnet10", tmp_path / "resnet_10.pth", tmp_path / "m.safetensors")
    assert "module.conv_seg.0.weight" in left_out
    extractor = load_extractor(f"medicalnet-resnet10:unit={tmp_path / 'm.safetensors'}")
    volume = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(extractor(volume).values, network.eval()(volume).mean((2, 3, 4)))


def test_the_authors_radimagenet_file_becomes_an_extractor(tmp_path):
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    published = {}
    for key, tensor in ResNet(50, STYLES["torchvision"]).state_dict().items():
        first, rest = key.split(".", 1)
        published[f"backbone.{numbers[first]}.{rest}"] = tensor
    torch.save(published, tmp_path / "ResNet50.pt")
    convert_extractor_weights("radimagenet-resnet50", tmp_path / "ResNet50.pt", tmp_path / "r.safetensors")
    assert load_extractor(f"radimagenet-resnet50={tmp_path / 'r.safetensors'}").layout == "torchvision"


def test_another_networks_checkpoint_is_refused(weights, tmp_path):
    with pytest.raises(ValueError, match="do not fit medicalnet-resnet18"):
        convert_extractor_weights("medicalnet-resnet18", weights, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="no weights to convert for 'deepbet'; known are medicalnet-resnet50"):
        convert_extractor_weights("deepbet", weights, tmp_path / "m.safetensors")
    assert "vgg16" in convertible()
