import torch
from informed_slice_pipelines import make_informed_pipeline

from voxdiff.pipelines.sampling_loop import run_sampling_loop


def sample(pipe, x0, **arguments):
    """Sample with a network that always finds this clean sample; returns what it was called with, and the result."""
    calls = []

    def predict(latents, index, timestep):
        alpha_bar = pipe.scheduler.alphas_cumprod[timestep]
        calls.append((index, int(timestep)))
        return (latents - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5

    pipe.scheduler.set_timesteps(4)
    arguments = {"generator": torch.Generator().manual_seed(0), **arguments}
    return calls, run_sampling_loop(pipe, torch.randn(x0[:1].shape).expand_as(x0), predict, **arguments)


def test_the_loop_ends_where_the_network_points_and_can_run_again():
    pipe, x0 = make_informed_pipeline(), torch.randn(1, 4, 2, 2)
    for _ in range(2):
        calls, made = sample(pipe, x0)
        assert [index for index, _ in calls] == [0, 1, 2, 3] and calls[0][1] == 999
        torch.testing.assert_close(made, x0)


def test_noisy_steps_draw_from_the_generators_of_their_entries():
    pipe, x0 = make_informed_pipeline(scheduler="gem-ddim"), torch.zeros(2, 4, 2, 2)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 3)]
    _, made = sample(pipe, x0, eta=1.0, generator=generators)
    assert made.abs().max() > 1e-3  # the noise that the last step of DDIM leaves
    torch.testing.assert_close(made[0], made[1])
    assert sample(pipe, x0)[1].abs().max() < sample(pipe, x0, eta=1.0)[1].abs().max()


def test_the_callback_changes_what_the_next_step_sees():
    pipe, x0 = make_informed_pipeline(), torch.randn(1, 4, 2, 2)
    seen = []

    def replace(pipe, index, timestep, tensors):
        seen.append((index, pipe.num_timesteps, list(tensors)))
        return {"latents": torch.full_like(x0, 7.0)}

    _, made = sample(pipe, x0, callback=replace)
    assert seen == [(index, 4, ["latents"]) for index in range(4)] and made.eq(7).all()
