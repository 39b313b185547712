from pathlib import Path

import pytest
import torch
import torchmetrics.functional.image.lpips as reference
from safetensors.torch import save_file
from torch import nn

from voxdiff.metrics.extractors.base import FeatureExtractor
from voxdiff.metrics.perceptual import (
    Vgg16,
    load_perceptual,
    lpips,
    pairwise_lpips,
    slice_lpips,
    substitute_backbone,
    vgg_backbone,
)


class TinyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2, padding=1)

    def feature_maps(self, images):
        first = self.conv1(images).relu()
        return [first, self.conv2(first).relu()]


@pytest.fixture
def substitute():
    torch.manual_seed(0)
    return substitute_backbone(make_extractor())


def make_extractor(**changes):
    settings = {"name": "tiny-2d", "network": TinyNetwork(), "spatial_dims": 2, "num_features": 8, "sha256": "0"}
    return FeatureExtractor(**{**settings, **changes})


@pytest.fixture(scope="module")
def vgg_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(Vgg16().state_dict(), path)
    return path


def test_with_vgg_it_is_torchmetrics_lpips(vgg_weights, monkeypatch):
    """torchmetrics' network around our seeded VGG: scaling, maps, normalisation, heads and sums are its own."""
    backbone = vgg_backbone(vgg_weights)
    network = Vgg16()
    network.load_state_dict(backbone.feature_maps.__self__.state_dict())
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda net, pretrained: network.features)
    theirs = reference._NoTrainLpips(net="vgg", pnet_rand=True)
    images, others = torch.rand(2, 3, 1, 32, 48)
    expected = theirs(images.expand(-1, 3, -1, -1), others.expand(-1, 3, -1, -1), normalize=True).flatten()
    assert backbone.name == "lpips(vgg16)"
    torch.testing.assert_close(slice_lpips(images, others, backbone), expected, rtol=1e-4, atol=1e-6)
    assert expected.min() > 1e-4


def test_heads_from_a_file_equal_the_shipped_ones(vgg_weights, tmp_path):
    shipped = Path(reference.__file__).with_name("lpips_models") / "vgg.pth"
    save_file(torch.load(shipped, "cpu", weights_only=True), tmp_path / "heads.safetensors")
    backbones = [vgg_backbone(vgg_weights), vgg_backbone(vgg_weights, heads=tmp_path / "heads.safetensors")]
    for first, second in zip(*(backbone.weights for backbone in backbones), strict=True):
        assert torch.equal(first, second)


def test_a_volumes_distance_is_the_mean_over_slices_and_planes(substitute):
    volume, other = torch.rand(2, 6, 8, 10)
    planes = []
    for axis in range(3):
        pairs = zip(volume.unbind(axis), other.unbind(axis), strict=True)
        planes.append(torch.cat([slice_lpips(a[None, None], b[None, None], substitute) for a, b in pairs]).mean())
    found = lpips(volume[None, None], other[None, None], backbone=substitute, batch_size=4)
    torch.testing.assert_close(found, torch.stack(planes).mean()[None])


def test_the_substitute_by_hand():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def feature_maps(self, images):
            return [torch.cat([images, 1 - images], 1)]

    backbone = substitute_backbone(make_extractor(network=Fixed()))
    zero, one = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    torch.testing.assert_close(slice_lpips(zero, one, backbone), torch.tensor([2.0]))
    diagonal = slice_lpips(one, one / 2, backbone)  # (1, 0) against (1, 1)/√2
    torch.testing.assert_close(diagonal, torch.tensor([2 - 2**0.5]))


def test_the_substitute_carries_its_name_and_its_extractors_hash(substitute):
    assert substitute.name == "lpips-substitute(tiny-2d)"
    assert substitute.sha256 == "0"


def test_the_substitute_sees_the_extractors_grid():
    torch.manual_seed(0)
    fixed = substitute_backbone(make_extractor(input_size=(8, 8)))
    image, other = torch.rand(2, 1, 1, 16, 16)
    halved = [nn.functional.avg_pool2d(item, 2) for item in (image, other)]
    assert torch.equal(slice_lpips(image, other, fixed), slice_lpips(*halved, fixed))


def test_equal_volumes_are_at_zero_and_a_stronger_blur_is_farther(substitute):
    volume = torch.rand(1, 1, 16, 16, 16)
    blurs = [nn.functional.avg_pool3d(volume, width, 1, width // 2) for width in (3, 5)]
    distances = [lpips(volume, other, backbone=substitute).item() for other in (volume, *blurs)]
    assert distances[0] == 0 < distances[1] < distances[2]


def test_every_second_slice_is_what_it_says(substitute):
    volume, other = torch.rand(2, 1, 1, 8, 8, 8)
    planes = [
        slice_lpips(*(item[0, 0].movedim(axis, 0)[::2, None] for item in (volume, other)), substitute).mean()
        for axis in range(3)
    ]
    sparse = lpips(volume, other, backbone=substitute, slice_step=2)
    torch.testing.assert_close(sparse, torch.stack(planes).mean()[None])


def test_pairs_are_drawn_by_the_seed(substitute):
    volumes = torch.rand(5, 1, 8, 8, 8)
    every = pairwise_lpips(volumes, backbone=substitute)
    drawn, again, other = (pairwise_lpips(volumes, max_pairs=4, seed=seed, backbone=substitute) for seed in (0, 0, 1))
    assert len(every) == 10
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)
    assert {value.item() for value in drawn} <= {value.item() for value in every}


def test_bad_input_is_said(substitute, vgg_weights):
    volumes = torch.rand(1, 1, 8, 8, 8)
    for first, second in ((volumes, volumes[..., :4]), (torch.rand(1, 2, 8, 8, 8),) * 2, (volumes[0], volumes[0])):
        with pytest.raises(ValueError, match=r"give \(batch, 1, x, y, z\) twice"):
            lpips(first, second, backbone=substitute)
    with pytest.raises(ValueError, match="needs 16 voxels a side"):
        lpips(volumes, volumes, backbone=vgg_backbone(vgg_weights))
    with pytest.raises(ValueError, match=r"1 volume\(s\); give at least 2"):
        pairwise_lpips(volumes, backbone=substitute)


def test_what_cannot_stand_in_is_said():
    with pytest.raises(ValueError, match="tiny-2d cannot stand in for VGG"):
        substitute_backbone(make_extractor(spatial_dims=3))
    with pytest.raises(ValueError, match="cannot stand in"):
        substitute_backbone(make_extractor(network=nn.Conv2d(1, 1, 1)))


def test_missing_or_wrong_weights_are_said(vgg_weights, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vgg16 was given no weights: download vgg16-397923af\.pth"):
        vgg_backbone(None)
    save_file({"lin0.model.1.weight": torch.rand(1, 64, 1, 1)}, tmp_path / "heads.safetensors")
    with pytest.raises(ValueError, match="The LPIPS heads hold"):
        vgg_backbone(vgg_weights, heads=tmp_path / "heads.safetensors")
    with pytest.raises(ValueError, match="heads without VGG's weights"):
        load_perceptual(heads=tmp_path / "heads.safetensors")
