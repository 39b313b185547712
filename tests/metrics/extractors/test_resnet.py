import pytest
import torch
from monai.networks.nets import ResNet as MonaiResNet
from monai.networks.nets.resnet import ResNetBlock, ResNetBottleneck

from voxdiff.metrics.extractors.resnet import ResNet, ResNetStyle


def make_monai(block, blocks, spatial_dims, in_channels, shortcut="B"):
    return MonaiResNet(
        block,
        blocks,
        [64, 128, 256, 512],
        spatial_dims=spatial_dims,
        n_input_channels=in_channels,
        conv1_t_stride=2,
        shortcut_type=shortcut,
        feed_forward=False,
        bias_downsample=False,
    ).eval()


def stir(network):
    """Batch norms as after training; without this a wrong epsilon or a swapped norm would not show."""
    for name, tensor in network.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return network


@pytest.mark.parametrize(
    ("depth", "spatial_dims", "shortcut"), [(10, 3, "B"), (18, 3, "A"), (18, 2, "B"), (50, 2, "B")]
)
def test_the_usual_network_equals_monais(depth, spatial_dims, shortcut):
    block = ResNetBottleneck if depth == 50 else ResNetBlock
    blocks = {10: [1, 1, 1, 1], 18: [2, 2, 2, 2], 50: [3, 4, 6, 3]}[depth]
    theirs = stir(make_monai(block, blocks, spatial_dims, 1, shortcut))
    style = ResNetStyle(spatial_dims=spatial_dims, in_channels=1, padded_shortcut=shortcut == "A")
    ours = ResNet(depth, style).eval()
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(2, 1, *(48, 40, 32)[:spatial_dims])
    with torch.inference_mode():
        maps = ours(image)
        assert maps.shape[1] == ours.num_features
        torch.testing.assert_close(maps.flatten(2).mean(2), theirs(image), rtol=1e-4, atol=1e-4)


def test_biases_epsilon_and_the_early_stride_equal_a_network_where_they_are_absorbed():
    """A bias before a batch norm moves its mean, an epsilon its variance."""
    style = ResNetStyle(spatial_dims=2, in_channels=3, stride_first=True, bias=True, epsilon=1e-2)
    ours = stir(ResNet(50, style)).eval()
    theirs = make_monai(ResNetBottleneck, [3, 4, 6, 3], 2, 3)
    for block in (theirs.layer2[0], theirs.layer3[0], theirs.layer4[0]):
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    state = ours.state_dict()
    for key in [key for key in state if key.endswith("running_mean")]:
        norm = key.removesuffix(".running_mean")
        conv = norm.replace("bn", "conv").replace("downsample.1", "downsample.0")
        state[key] = state[key] - state.pop(f"{conv}.bias")
        state[f"{norm}.running_var"] = state[f"{norm}.running_var"] + 1e-2 - 1e-5
    theirs.load_state_dict(state)
    image = torch.rand(1, 3, 64, 48)
    with torch.inference_mode():
        torch.testing.assert_close(ours(image).mean((2, 3)), theirs(image), rtol=1e-3, atol=1e-4)
