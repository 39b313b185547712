import pytest
import torch

from voxdiff.schedulers import make_scheduler
from voxdiff.training.batches import SampleNoise
from voxdiff.training.diffusion_target import diffuse

CLEAN = torch.randn(3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def noise():
    return SampleNoise(0, {"step": [1, 1, 1], "place": [0, 1, 2]})


def noised(scheduler):
    return diffuse(scheduler, CLEAN, noise())


@pytest.mark.parametrize("preset", ["med-ddpm", "med-dpm++"])
def test_the_noised_sample_is_that_of_the_ddpm(preset):
    sample, timesteps, draw = noised(make_scheduler(preset))
    expected = make_scheduler("med-ddpm").add_noise(CLEAN, draw, timesteps)
    assert len(set(timesteps.tolist())) == 3
    assert torch.allclose(sample, expected, atol=1e-5)


def test_every_target_stands_for_the_same_clean_sample():
    schedulers = {
        kind: make_scheduler("med-ddpm", prediction_type=kind) for kind in ("sample", "epsilon", "v_prediction")
    }
    results = {kind: noised(scheduler) for kind, scheduler in schedulers.items()}
    sample, timesteps, epsilon = results["epsilon"]
    assert torch.equal(results["sample"][2], CLEAN)
    alpha = schedulers["sample"].alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    assert torch.allclose(alpha * sample - sigma * results["v_prediction"][2], CLEAN, atol=1e-5)
    assert abs(epsilon.std() - 1) < 0.1


def test_flow_matching_goes_from_data_to_noise():
    sample, timesteps, velocity = noised(make_scheduler("flow-matching"))
    sigma = (timesteps / 1000).view(-1, 1, 1, 1, 1)
    assert torch.allclose(sample - sigma * velocity, CLEAN, atol=1e-5)
    assert 0 <= timesteps.min() < timesteps.max() < 1000
