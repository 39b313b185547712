"""Membership inference against models that memorise or do not, and extraction of a planted clique."""

import pytest
import torch
from textured_balls import random_volumes

from voxdiff.metrics.attacks import denoising_error, extraction_attack, membership_inference


@pytest.fixture(scope="module")
def volumes() -> torch.Tensor:
    return torch.rand((40, 1, 4, 4, 4), generator=torch.Generator().manual_seed(0))


def memoriser(train: torch.Tensor):
    """Answers with the training volume nearest to the noisy one."""

    def denoise(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        nearest = torch.cdist(noisy.flatten(1), train.flatten(1)).argmin(dim=1)
        return train[nearest]

    return denoise


def add_noise(volumes: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    return volumes + 0.001 * timesteps.view(-1, 1, 1, 1, 1) * noise


def test_a_memoriser_gives_its_training_set_away(volumes):
    error = denoising_error(memoriser(volumes[:20]), add_noise, [50, 100])
    result = membership_inference(error, volumes[:20], volumes[20:], false_positive_rate=0.05)
    assert result.auc == 1 and result.true_positive_rate == 1
    assert result.auc_interval == (1, 1) and result.warnings == ()


def test_a_constant_error_tells_nothing(volumes):
    result = membership_inference(lambda batch: torch.ones(len(batch)), volumes[:20], volumes[20:])
    assert result.auc == 0.5 and result.true_positive_rate == 0
    assert "cannot show a false positive rate of 0.01" in result.warnings[0]


def test_the_numbers_of_known_errors(volumes):
    errors = torch.tensor([1.0, 3.0, 5.0, 2.0, 4.0, 4.0, 6.0])
    volumes = errors.view(-1, 1, 1, 1, 1)
    result = membership_inference(
        lambda batch: batch.flatten(), volumes[:3], volumes[3:], false_positive_rate=0.25, num_bootstrap=200
    )
    # The three training errors lie below 4, 3 and 1 of the four held-out ones.
    assert result.auc == pytest.approx(8 / 12)
    # Below the second smallest held-out error, 4, there is one false positive in four, and two of three members.
    assert result.true_positive_rate == pytest.approx(2 / 3)
    assert result.auc_interval[0] < result.auc < result.auc_interval[1]
    again = membership_inference(
        lambda batch: batch.flatten(), volumes[:3], volumes[3:], false_positive_rate=0.25, num_bootstrap=200
    )
    assert result.auc_interval == again.auc_interval
    assert result.true_positive_interval == again.true_positive_interval


def test_noise_belongs_to_the_volume_and_not_to_its_place(volumes):
    def echo(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return noisy

    error = denoising_error(echo, add_noise, [100, 200], seed=3)
    whole = error(volumes[:6])
    assert torch.equal(whole[[4]], error(volumes[[4]]))
    assert len(whole.unique()) == 6
    assert whole.mean().item() == pytest.approx((0.1**2 + 0.2**2) / 2, rel=0.2)
    assert not torch.equal(whole, denoising_error(echo, add_noise, [100, 200], seed=4)(volumes[:6]))


def test_errors_must_be_one_a_volume(volumes):
    with pytest.raises(ValueError, match="one finite number a volume"):
        membership_inference(lambda batch: batch.mean(), volumes[:20], volumes[20:])
    with pytest.raises(ValueError, match="at least 2 of each"):
        membership_inference(lambda batch: batch.flatten(1).mean(1), volumes[:1], volumes[20:])
    with pytest.raises(ValueError, match="No timesteps"):
        denoising_error(memoriser(volumes), add_noise, [])


def test_extraction_finds_the_planted_cliques():
    train, samples = random_volumes(3, 1, 16), random_volumes(8, 2, 16)
    for index in (1, 4, 6):
        samples[index] = (train[2].flip(1) + 0.01 * index * random_volumes(1, index, 16)[0]).clamp(0, 1.1)
    samples[5] = samples[3]
    attack = extraction_attack(samples, train, threshold=0.15, candidates=3)
    assert [sorted(clique.members) for clique in attack.cliques] == [[1, 4, 6], [3, 5]]
    recalled, repeated = attack.cliques
    assert recalled.nearest_train == 2 and recalled.extracted and recalled.distance < 0.15
    assert not repeated.extracted
    assert (attack.num_samples, attack.num_in_cliques, attack.num_extracted) == (8, 5, 1)


def test_a_chain_of_samples_is_no_clique():
    train = random_volumes(2, 3, 16)
    ends = random_volumes(2, 4, 16)
    chain = torch.stack([ends[0] + share * (ends[1] - ends[0]) for share in torch.linspace(0, 1, 7)])
    attack = extraction_attack(chain, train, threshold=0.06, candidates=3)
    assert attack.cliques and max(len(clique.members) for clique in attack.cliques) < 7


def test_a_sampler_gets_the_seeds_and_one_that_does_not_repeat_itself_gives_nothing():
    asked = []

    def sample(seeds: list[int]) -> torch.Tensor:
        asked.extend(seeds)
        return torch.cat([random_volumes(1, seed, 16) for seed in seeds])

    attack = extraction_attack(sample, random_volumes(2, 1, 16), threshold=0.15, num_samples=5, seed=7)
    assert asked == [7, 8, 9, 10, 11]
    assert attack.cliques == () and attack.num_extracted == 0
    with pytest.raises(ValueError, match="threshold of 0"):
        extraction_attack(sample, random_volumes(2, 1, 16), threshold=0)
