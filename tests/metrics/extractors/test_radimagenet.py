import pytest
import torch
from safetensors.torch import load_file, save_file

from voxdiff.metrics.extractors.radimagenet import STYLES, load_radimagenet
from voxdiff.metrics.extractors.resnet import ResNet


@pytest.fixture(scope="module", params=["keras", "torchvision"])
def layout_and_weights(request, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param) / "weights.safetensors"
    save_file(ResNet(50, STYLES[request.param]).state_dict(), path)
    return request.param, path


def test_the_layout_is_read_off_the_tensors_and_reported(layout_and_weights):
    layout, path = layout_and_weights
    extractor = load_radimagenet(weights=path)
    assert extractor.settings()["layout"] == layout
    assert extractor(torch.rand(2, 1, 48, 40)).values.shape == (2, 2048)


def test_slices_are_fed_as_each_publisher_does(layout_and_weights):
    layout, path = layout_and_weights
    extractor = load_radimagenet(weights=path)
    image = torch.rand(1, 1, 32, 32)
    fed = {
        "keras": torch.cat([image - 0.406, image - 0.456, image - 0.485], 1),
        "torchvision": torch.cat([2 * image - 1] * 3, 1),
    }[layout]
    with torch.inference_mode():
        expected = extractor.network(fed).mean((2, 3))
    torch.testing.assert_close(extractor(image).values, expected)


def test_a_mixture_of_the_layouts_is_refused(layout_and_weights, tmp_path):
    layout, path = layout_and_weights
    state = load_file(path)
    if layout == "keras":
        del state["conv1.bias"]
    else:
        state["conv1.bias"] = torch.zeros(64)
    save_file(state, tmp_path / "mixed.safetensors")
    with pytest.raises(ValueError, match="do not fit radimagenet-resnet50"):
        load_radimagenet(weights=tmp_path / "mixed.safetensors")
