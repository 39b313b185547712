import pytest
import torch
from autoencoder_runs import make_noise

from voxdiff.metrics.perceptual import PerceptualBackbone, Vgg16, load_perceptual, vgg_backbone
from voxdiff.training.perceptual_loss import TriPlanePerceptualLoss


def make_backbone(smallest=1):
    """Its only map is the image: the distance is 1 - cosine of one channel, 0 or 4 by the sign of the voxel."""
    return PerceptualBackbone(
        name="plain",
        feature_maps=lambda images: [images],
        weights=(torch.ones(1),),
        sha256="",
        device=torch.device("cpu"),
        smallest=smallest,
    )


def test_it_is_the_mean_of_each_plane_summed():
    volumes = torch.full((2, 1, 4, 6, 8), 0.5)
    others = volumes.clone()
    others[1] = -2.0  # of the other sign on the scale [0, 1]
    loss = TriPlanePerceptualLoss(make_backbone(), share=1.0)(volumes, others, make_noise(2))
    torch.testing.assert_close(loss, torch.tensor(3 * 4 / 2))
    assert TriPlanePerceptualLoss(make_backbone())(volumes, volumes, make_noise(2)) == 0


def test_it_sees_a_random_share_of_the_slices():
    shapes = []
    backbone = make_backbone()
    spying = PerceptualBackbone(
        **{**vars(backbone), "feature_maps": lambda images: [shapes.append(images.shape) or images]}
    )
    volumes = torch.rand(2, 3, 10, 20, 30) * 2 - 1
    others = torch.rand(2, 3, 10, 20, 30) * 2 - 1
    loss = TriPlanePerceptualLoss(spying, share=0.2)
    first = loss(volumes, others, make_noise(2))
    counts = [2 * 3 * count for count in (2, 4, 6)]
    planes = [(20, 30), (10, 30), (10, 20)]
    assert shapes[::2] == [(count, 1, *plane) for count, plane in zip(counts, planes, strict=True)]
    marked = volumes.clone()
    marked[0, :, 3] *= -1
    found = {loss(marked, volumes, make_noise(2, seed)).item() > 0 for seed in range(3)}
    assert True in found
    assert first == loss(volumes, others, make_noise(2))


def test_each_sample_has_its_own_slices():
    """Half a batch on each of two processes is the batch."""
    torch.manual_seed(0)
    volumes, others = torch.rand(2, 2, 1, 8, 8, 8) * 2 - 1
    loss = TriPlanePerceptualLoss(load_perceptual())
    together = loss(volumes, others, make_noise(2))
    halves = []
    for place in range(2):
        noise = make_noise(2)
        noise.generators = noise.generators[place : place + 1]
        halves.append(loss(volumes[place : place + 1], others[place : place + 1], noise))
    torch.testing.assert_close(together, torch.stack(halves).mean(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weights", [None, "vgg"])
def test_gradients_reach_the_reconstruction_only(weights):
    torch.manual_seed(0)
    if weights is None:
        backbone = load_perceptual()
    else:
        network = Vgg16().eval().requires_grad_(False)
        backbone = PerceptualBackbone(**{**vars(make_backbone(16)), "feature_maps": network.feature_maps})
        backbone = PerceptualBackbone(**{**vars(backbone), "weights": None})
    volumes, others = (torch.rand(1, 1, 16, 16, 16, requires_grad=True) for _ in range(2))
    TriPlanePerceptualLoss(backbone, share=0.1)(volumes, others, make_noise(1)).backward()
    assert volumes.grad.any() and torch.isfinite(volumes.grad).all() and others.grad is None


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"share of slices .* is 0\.0; give one above 0"):
        TriPlanePerceptualLoss(make_backbone(), share=0.0)
    small = torch.zeros(1, 1, 16, 16, 8)
    with pytest.raises(ValueError, match=r"needs 16 a side: use larger patches"):
        TriPlanePerceptualLoss(make_backbone(smallest=16))(small, small, make_noise(1))
    with pytest.raises(FileNotFoundError):
        vgg_backbone("nosuch.safetensors")
