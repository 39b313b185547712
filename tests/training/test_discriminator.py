import pytest
import torch

from voxdiff.training.discriminator import (
    PatchDiscriminator3D,
    adversarial_loss,
    feature_matching_loss,
    hinge_loss,
)


def test_hinge_loss_is_the_closed_form():
    real, fake = torch.tensor([2.0, 1.0, 0.5, -1.0]), torch.tensor([-2.0, -1.0, 0.0, 1.0])
    torch.testing.assert_close(hinge_loss(real, fake), torch.tensor((2.5 / 4 + 3.0 / 4) / 2))
    torch.testing.assert_close(adversarial_loss(fake), torch.tensor(0.5))


def test_feature_matching_sums_the_blocks_and_trains_the_generator_only():
    fake = [torch.ones(2, 3, requires_grad=True), torch.zeros(4, requires_grad=True)]
    real = [torch.zeros(2, 3, requires_grad=True), torch.full((4,), 5.0, requires_grad=True)]
    loss = feature_matching_loss(fake, real)
    torch.testing.assert_close(loss, torch.tensor(6.0))
    loss.backward()
    assert all(tensor.grad.any() for tensor in fake) and all(tensor.grad is None for tensor in real)
    with pytest.raises(ValueError):
        feature_matching_loss(fake, real[:1])


def test_a_few_steps_tell_bright_volumes_from_dark_ones():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator3D(base_channels=2, num_layers=1)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        noise = torch.rand(4, 1, 8, 8, 8)
        loss = hinge_loss(discriminator(noise).logits, discriminator(-noise).logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
