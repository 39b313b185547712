import pytest
import torch
from diffusers import AutoencoderKL

from voxdiff.metrics.perceptual import load_perceptual
from voxdiff.training.batches import SampleNoise
from voxdiff.training.objective_slice_autoencoder import SliceAutoencoderLossWeights, SliceAutoencoderObjective


def make_vae(channels=1, **config):
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        latent_channels=2,
        **config,
    )


def make_batch(size=2, depth=6):
    """Values tell the volume and the slice; masks have the negative ones."""
    places = (1 + torch.arange(depth).float() + 10 * torch.arange(size).float()[:, None]) / (10 * size)
    image = places[:, None, None, None].expand(-1, 1, 8, 12, -1).clone()
    return {"image": image, "mask": -image, "step": [3] * size, "place": list(range(size))}


def loss_of(objective, batch):
    return objective(objective.vae, batch, SampleNoise(0, batch))


def test_slices_of_images_and_masks_are_drawn_in_their_shares():
    batch = make_batch(200)
    slices = SliceAutoencoderObjective(make_vae(), mask_share=0.25).draw_slices(batch, SampleNoise(0, batch))
    assert slices.shape == (1600, 1, 8, 12)
    values = slices[:, 0, 0, 0]
    assert torch.equal(slices, values[:, None, None, None].expand_as(slices))
    assert abs((values < 0).float().mean() - 0.25) < 0.04
    tenths = (values.abs() * 2000).round()
    assert torch.equal(tenths // 10, torch.arange(200.0).repeat_interleave(8))
    assert torch.bincount((tenths % 10).long())[1:].min() > 1600 / 6 - 60


def test_the_loss_is_made_of_its_terms():
    batch, vae = make_batch(), make_vae()
    weights = SliceAutoencoderLossWeights(kl=0.5, perceptual=0.0)
    objective = SliceAutoencoderObjective(vae, weights=weights, slices_per_volume=3)
    noise = SampleNoise(0, batch)
    slices = objective.draw_slices(batch, noise)
    posterior = vae.encode(slices).latent_dist
    latents = posterior.sample(generator=[generator for generator in noise.generators for _ in range(3)])
    l1 = (vae.decode(latents).sample - slices).abs().mean()
    loss = loss_of(objective, batch)
    assert torch.isclose(loss, l1 + 0.5 * posterior.kl().mean())
    assert {name: round(term.item(), 4) for name, term in objective.terms.items()} == {
        "l1": round(l1.item(), 4),
        "kl": round(posterior.kl().mean().item(), 4),
    }
    assert not vae.quant_conv._forward_hooks


def test_the_perceptual_term_is_none_for_a_perfect_reconstruction_and_trains_otherwise():
    batch, vae = make_batch(), make_vae()
    objective = SliceAutoencoderObjective(vae, slices_per_volume=2, perceptual=load_perceptual())
    loss = loss_of(objective, batch)
    expected = objective.terms["l1"] + 1e-6 * objective.terms["kl"] + 0.5 * objective.terms["perceptual"]
    assert torch.isclose(loss, expected)
    assert objective.terms["perceptual"] > 0
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in vae.parameters())


@pytest.mark.parametrize("settings", [{"channels": 3}, {"use_quant_conv": False, "use_post_quant_conv": False}])
def test_autoencoders_of_colour_images_or_without_quant_conv(settings):
    assert loss_of(SliceAutoencoderObjective(make_vae(**settings), slices_per_volume=2), make_batch()).isfinite()


def test_a_volume_is_treated_the_same_in_any_batch():
    batch, objective = make_batch(3), SliceAutoencoderObjective(make_vae(), slices_per_volume=2)
    losses = [loss_of(objective, {key: value[part : part + 1] for key, value in batch.items()}) for part in range(3)]
    assert torch.isclose(loss_of(objective, batch), torch.stack(losses).mean())


def test_an_impossible_share_is_refused():
    with pytest.raises(ValueError, match="The share of mask slices is 1; give one from 0"):
        SliceAutoencoderObjective(make_vae(), mask_share=1)
