from importlib import metadata

import pytest
import torch

from voxdiff.metrics.extractors.deepbet import load_deepbet, standardise

try:
    metadata.distribution("deepbet")
    INSTALLED = True
except metadata.PackageNotFoundError:
    INSTALLED = False
needs_deepbet = pytest.mark.skipif(not INSTALLED, reason="deepbet is not installed")


@pytest.fixture(scope="module")
def brains():
    """Two textured balls on a dark background."""
    texture = torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    axis = torch.linspace(-1, 1, 32)
    ball = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < 0.6
    return (0.3 + 0.7 * torch.nn.functional.avg_pool3d(texture, 3, 1, 1)) * ball


def test_standardising_gives_the_networks_own_mean_and_deviation(brains):
    fed = standardise(brains)
    torch.testing.assert_close(fed.mean((1, 2, 3, 4)), torch.full((2,), 0.449))
    torch.testing.assert_close(fed.std((1, 2, 3, 4)), torch.full((2,), 0.226))


def test_standardising_clips_outliers_and_takes_a_blank_volume():
    volume = torch.rand(1, 1, 8, 8, 8)
    spiked = volume.clone()
    spiked[0, 0, 0, 0, 0] = 1000
    assert standardise(spiked).max() < 2
    assert standardise(torch.zeros_like(volume)).isfinite().all()


@needs_deepbet
def test_features_are_those_of_the_whole_network(brains):
    """The stages are called one by one; the rest of the network on top must give what the network gives."""
    extractor = load_deepbet(size=32)
    network, fed = extractor.network.network, standardise(brains)
    with torch.inference_mode():
        relu = getattr(network.conv, "2")
        maps = [network.init.forward(relu, fed)]
        for stage in (network.down0, network.down1, network.down2):
            maps.append(stage.forward(relu, maps[-1]))
        hidden = network.up0.forward(relu, network.down3.forward(relu, maps[3])) + maps[3]
        for up, skip in ((network.up1, maps[2]), (network.up2, maps[1]), (network.up3, maps[0])):
            hidden = up.forward(relu, hidden) + skip
        whole = network.tp_conv2.forward(network.conv.forward(network.tp_conv1.forward(relu, hidden))).softmax(1)
        torch.testing.assert_close(whole, network(fed), rtol=1e-4, atol=1e-4)
        values = extractor(brains).values
    assert values.shape == (2, extractor.num_features)
    torch.testing.assert_close(values[:, :16], maps[1].mean((2, 3, 4)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values[:, -64:], maps[3].std((2, 3, 4)), rtol=1e-4, atol=1e-5)


@needs_deepbet
def test_features_see_a_blur_and_not_the_intensity_scale(brains):
    extractor = load_deepbet(size=32)
    blurred = torch.nn.functional.avg_pool3d(brains, 3, 1, 1)
    plain, dimmed, soft = (extractor(volumes).values for volumes in (brains, 0.5 * brains, blurred))
    assert (plain - dimmed).abs().max() < 1e-3 < 1e-2 < (plain - soft).abs().mean()


@needs_deepbet
def test_a_volume_does_not_depend_on_its_batch(brains):
    extractor = load_deepbet(size=32)
    torch.testing.assert_close(extractor(brains).values[1:2], extractor(brains[1:2]).values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [16, 100])
def test_a_grid_that_the_network_cannot_halve_is_refused(size):
    with pytest.raises(ValueError, match=f"{size} voxels a side; give a multiple of 32"):
        load_deepbet(size=size)


def test_without_the_package_the_command_is_named(monkeypatch):
    def find_nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", find_nothing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps deepbet==1\.0\.2"):
        load_deepbet()
