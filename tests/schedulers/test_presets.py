import diffusers
import numpy as np
import pytest
import torch
from goldens import load_golden

from voxdiff.schedulers import PRESETS, SUPPORTED_SCHEDULERS, check_scheduler, make_scheduler, swap_scheduler


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_a_supported_scheduler(preset):
    check_scheduler(make_scheduler(preset))


@pytest.mark.parametrize("name", [name for name in SUPPORTED_SCHEDULERS if name != "flow-euler"])
@pytest.mark.parametrize("preset", ["wdm-ddpm", "wdm-ddim", "wdm-dpm++"])
def test_a_swap_keeps_the_diffusion(preset, name):
    swapped = swap_scheduler(make_scheduler(preset), name)
    assert type(swapped).__name__ == SUPPORTED_SCHEDULERS[name]
    for key, value in {
        "prediction_type": "sample",
        "beta_start": 1e-4,
        "beta_end": 2e-2,
        "beta_schedule": "linear",
    }.items():
        assert swapped.config[key] == value, key
    if "clip_sample" in swapped.config:
        assert swapped.config.clip_sample is False


@pytest.mark.parametrize("name", [name for name in SUPPORTED_SCHEDULERS if name != "flow-euler"])
def test_timesteps_suit_the_solver(name):
    scheduler = swap_scheduler(make_scheduler("wdm-dpm++"), name)
    scheduler.set_timesteps(50)
    first, last = scheduler.timesteps[0], scheduler.timesteps[-1]
    assert last < 21 and (first, last) == ((980, 0) if name in ("ddpm", "ddim") else (999, last))
    if name == "ddpm":
        scheduler.set_timesteps(1000)
        assert scheduler.timesteps.tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize("second", [name for name in SUPPORTED_SCHEDULERS if name != "flow-euler"])
@pytest.mark.parametrize("first", [name for name in SUPPORTED_SCHEDULERS if name != "flow-euler"])
def test_swapping_there_and_back_changes_nothing(first, second):
    there = swap_scheduler(make_scheduler("wdm-dpm++"), first)
    back = swap_scheduler(swap_scheduler(there, second), first)
    own = {name for name in there.config if name in type(there)._get_init_keys(type(there))}
    assert {name: there.config[name] for name in own} == {name: back.config[name] for name in own}


def test_unsupported_schedulers_raise():
    with pytest.raises(ValueError, match="PNDMScheduler, which voxdiff does not support; use one of ddpm"):
        check_scheduler(diffusers.PNDMScheduler())
    with pytest.raises(ValueError, match="'lcm' is not supported; choose one of ddpm"):
        swap_scheduler(make_scheduler("wdm-ddpm"), "lcm")
    with pytest.raises(ValueError, match="flow matching and diffusion define time differently"):
        swap_scheduler(make_scheduler("wdm-ddpm"), "flow-euler")
    with pytest.raises(ValueError, match="preset 'ddpm' is unknown; choose one of wdm-ddpm"):
        make_scheduler("ddpm")


class Float64Posterior:
    """The published ancestral step with a float64 schedule (Ho 2020, eq. 6 and 7; larger variance)."""

    def __init__(self):
        self.betas = np.linspace(1e-4, 2e-2, 1000)
        self.alpha_bar = np.cumprod(1 - self.betas)
        self.alpha_bar_prev = np.append(1.0, self.alpha_bar[:-1])

    def mean(self, x0, sample, t):
        beta, bar, prev = self.betas[t], self.alpha_bar[t], self.alpha_bar_prev[t]
        return beta * np.sqrt(prev) / (1 - bar) * x0 + (1 - prev) * np.sqrt(1 - beta) / (1 - bar) * sample

    def step(self, x0, sample, t, noise):
        return self.mean(x0, sample, t) + (t > 0) * np.sqrt(self.betas[t]) * noise


@pytest.mark.parametrize("case", ["wdm", "cwdm"])
@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_posterior_step_of_the_golden_file(case, t):
    """Float64 meets the file's tolerance; diffusers' float32 schedule is 3e-4 away at t = 1 and exact elsewhere."""
    meta, _, inputs, outputs = load_golden(f"{case}_sampling")
    x0, sample, noise = outputs[f"t{t}.pred_xstart"], inputs[f"t{t}.x"][:, :8], inputs[f"t{t}.noise0"]
    reference = Float64Posterior()
    mean = reference.mean(x0.double(), sample.double(), t).float()
    torch.testing.assert_close(mean, outputs[f"t{t}.mean"], atol=meta["atol"], rtol=0)
    stepped = reference.step(x0.double(), sample.double(), t, noise.double()).float()
    torch.testing.assert_close(stepped, outputs[f"t{t}.sample"], atol=meta["atol"], rtol=0)

    scheduler = make_scheduler("wdm-ddpm")
    scheduler.set_timesteps(1000)
    with_noise = _Replay([noise])
    with_noise.install(scheduler)
    ours = scheduler.step(x0, t, sample).prev_sample
    assert (ours - outputs[f"t{t}.sample"]).abs().max() <= (5e-4 if t == 1 else meta["atol"])


class _Replay:
    """Feeds recorded noise to a scheduler's step."""

    def __init__(self, draws):
        self.draws = list(draws)

    def install(self, scheduler):
        step = scheduler.step

        def replaying(*args, **kwargs):
            import diffusers.schedulers.scheduling_ddpm as module

            original, module.randn_tensor = module.randn_tensor, lambda *a, **k: self.draws.pop(0)
            try:
                return step(*args, **kwargs)
            finally:
                module.randn_tensor = original

        scheduler.step = replaying
