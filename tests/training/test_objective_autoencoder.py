import pytest
import torch
from autoencoder_runs import SmoothVolumes, make_discriminator, make_noise, make_objective, make_trainer, make_untrained
from autoencoders import make_autoencoder, make_kl_autoencoder

from voxdiff.training.discriminator import hinge_loss
from voxdiff.training.log import read_log
from voxdiff.training.objective_autoencoder import AutoencoderLossWeights
from voxdiff.training.random_crops import RandomCrops


def make_batch(count=2, step=0):
    dataset = SmoothVolumes()
    return {"volume": torch.stack([dataset[index]["volume"] for index in range(count)]), "step": [step] * count}


def test_the_loss_is_the_weighted_sum_of_its_terms():
    vae = make_autoencoder()
    weights = AutoencoderLossWeights(l1=3.0, perceptual=5.0, adversarial=0.5, feature_matching=0.25)
    perceptual = lambda fake, real, noise: (fake - real).square().mean()  # noqa: E731
    objective = make_objective(vae, weights=weights, perceptual=perceptual, crops=RandomCrops(None, augment=False))
    loss = objective(vae, batch := make_batch(), make_noise(2))
    terms = objective.terms
    real = batch["volume"]
    fake = vae(real).sample
    expected = {"l1": (fake - real).abs().mean(), "perceptual": (fake - real).square().mean()}
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value.detach())
    torch.testing.assert_close(
        loss.detach(),
        3 * terms["l1"]
        + terms["commitment"]
        + 5 * terms["perceptual"]
        + 0.5 * terms["adversarial"]
        + 0.25 * terms["feature_matching"],
    )
    assert terms["commitment"] > 0 and terms["feature_matching"] > 0 and terms["perplexity"] > 1


def test_the_kl_autoencoder_is_held_to_a_normal_distribution():
    vae = make_kl_autoencoder()
    weights = AutoencoderLossWeights(l1=1.0, kl=0.1)
    objective = make_objective(vae, weights=weights, adversary=None)
    loss = objective(vae, make_batch(), make_noise(2))
    torch.testing.assert_close(loss.detach(), objective.terms["l1"] + 0.1 * objective.terms["kl"])
    assert objective.terms["kl"] > 0 and set(objective.terms) == {"l1", "kl"}


def test_each_side_learns_from_its_own_loss_only():
    vae = make_autoencoder().train()
    objective = make_objective(vae)
    objective(vae, make_batch(), make_noise(2)).backward()
    assert all(weight.grad is None and weight.requires_grad for weight in objective.adversary.parameters())
    assert vae.decoder.conv_in.weight.grad.any() and vae.encoder.conv_in.weight.grad.any()
    vae.zero_grad()
    objective.adversary_loss(objective.adversary).backward()
    assert all(weight.grad is None for weight in vae.parameters())
    assert objective.adversary.blocks[0].conv.weight.grad.any()


def test_the_discriminator_judges_the_same_batch():
    vae = make_autoencoder()
    objective = make_objective(vae, crops=RandomCrops(None, augment=False), adversary=make_discriminator().eval())
    batch = make_batch()
    objective(vae, batch, make_noise(2))
    loss = objective.adversary_loss(objective.adversary)
    real, fake = (objective.adversary(volume).logits for volume in (batch["volume"], vae(batch["volume"]).sample))
    torch.testing.assert_close(loss, 2 * hinge_loss(real, fake))
    torch.testing.assert_close(objective.terms["discriminator"], loss.detach() / 2)


def test_before_the_start_there_is_no_discriminator():
    vae = make_autoencoder()
    objective = make_objective(vae, adversarial_start=3)
    alone = make_objective(vae, adversary=None)
    early, late = (objective(vae, make_batch(step=step), make_noise(2)) for step in (2, 3))
    assert torch.equal(early, alone(vae, make_batch(), make_noise(2)))
    assert not torch.equal(early, late)
    objective(vae, make_batch(step=2), make_noise(2))
    assert objective.adversary_loss(objective.adversary) is None


def test_the_volume_stage_leaves_encoder_and_codebook_bitwise_as_they_were(tmp_path):
    """The published one re-initialised its codebook after a look at a volume: evaluation mode, then training mode."""
    make_trainer(tmp_path / "patch").train()
    vae = type(make_autoencoder()).from_pretrained(tmp_path / "patch")
    vae.freeze_encoder()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    look = lambda shown, folder, step: shown.eval()  # noqa: E731
    objective = make_objective(vae, crops=RandomCrops(None))
    settings = {"validation_steps": 1, "adam_weight_decay": 0.1, "max_train_steps": 3}
    trained = make_trainer(tmp_path / "volume", vae=vae, objective=objective, validate=look, **settings).train()
    assert trained is vae
    changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in changed} == {"decoder", "post_quant_conv"}
    assert {name for name in before if name.startswith(("decoder", "post_quant_conv"))} == changed


def test_it_learns_to_reconstruct(tmp_path):
    vae = make_untrained()
    objective = make_objective(vae, adversarial_start=20)
    settings = {"max_train_steps": 25, "checkpointing_steps": 25, "logging_steps": 5, "learning_rate": 2e-2}
    make_trainer(tmp_path, vae=vae, objective=objective, **settings).train()
    log = read_log(tmp_path / "training_log.jsonl")
    assert log[-2]["l1"] < 0.6 * log[0]["l1"]
    assert log[-1]["discriminator"] > 0 and log[-1]["perplexity"] > 2


def test_bf16_keeps_the_codebook_in_32_bit(tmp_path):
    trainer = make_trainer(tmp_path, mixed_precision="bf16")
    seen = []
    trainer.network.decoder.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trained = trainer.train()
    assert set(seen) == {torch.bfloat16}
    assert trained.quantize.embedding.dtype == trained.quantize.cluster_size.dtype == torch.float32


@pytest.mark.parametrize("kind", [make_autoencoder, make_kl_autoencoder])
def test_the_same_seed_gives_the_same_loss(kind):
    losses = []
    for seed in (0, 0, 1):
        vae = kind().train()
        objective = make_objective(vae)
        losses.append(objective(vae, make_batch(), make_noise(2, seed)).item())
    assert losses[0] == losses[1] != losses[2]
