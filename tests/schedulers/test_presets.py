import diffusers
import numpy as np
import pytest
import torch
from goldens import load_golden

from voxdiff.hub.convert import convert_state_dict
from voxdiff.schedulers import PRESETS, SUPPORTED_SCHEDULERS, check_scheduler, make_scheduler, swap_scheduler
from voxdiff.schedulers.constraint import output_from_x0
from voxdiff.schedulers.presets import cosine_betas


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


@pytest.mark.parametrize("name", [name for name in SUPPORTED_SCHEDULERS if name != "flow-euler"])
def test_the_cosine_preset_leaves_hardly_any_signal_with_every_solver(name):
    swapped = swap_scheduler(make_scheduler("cosine-dpm++"), name)
    assert swapped.alphas_cumprod[-1] ** 0.5 < 1e-3 < make_scheduler("gem-dpm++").alphas_cumprod[-1] ** 0.5
    assert swapped.config.prediction_type == "v_prediction"


def test_unsupported_schedulers_raise():
    with pytest.raises(ValueError, match="PNDMScheduler, which voxdiff does not support; use one of ddpm"):
        check_scheduler(diffusers.PNDMScheduler())
    with pytest.raises(ValueError, match="'lcm' is not supported; choose one of ddpm"):
        swap_scheduler(make_scheduler("wdm-ddpm"), "lcm")
    with pytest.raises(ValueError, match="flow matching and diffusion define time differently"):
        swap_scheduler(make_scheduler("wdm-ddpm"), "flow-euler")
    with pytest.raises(ValueError, match="preset 'ddpm' is unknown; choose one of wdm-ddpm"):
        make_scheduler("ddpm")


def test_fdm_spreads_few_steps_from_noise_to_the_clean_sample():
    """The official respacing; the values are those of the golden file cdpm_stage."""
    scheduler = make_scheduler("fdm")
    scheduler.set_timesteps(12)
    facts = load_golden("cdpm_stage")[0]["facts"]
    assert scheduler.timesteps.tolist() == facts["timestep_map"][::-1]
    following = [*scheduler.timesteps[1:], None]
    for timestep, after, beta in zip(scheduler.timesteps, following, facts["betas"][::-1], strict=True):
        before = 1.0 if after is None else scheduler.alphas_cumprod[after]
        assert float(1 - scheduler.alphas_cumprod[timestep] / before) == pytest.approx(beta, abs=1e-5)
        if timestep > 0:
            assert float(scheduler._get_variance(timestep)) == pytest.approx(beta, abs=1e-5)
    assert make_scheduler("fdm-dpm++").config["timestep_spacing"] == "linspace"
    assert swap_scheduler(scheduler, "ddim").config["timestep_spacing"] == "leading"


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


def test_cosine_betas_are_the_published_ones():
    facts = load_golden("med_sampling")[0]["facts"]
    schedule = facts["schedule_1000"]
    betas = np.array(make_scheduler("med-ddpm").config["trained_betas"])
    np.testing.assert_allclose(betas[schedule["at"]], schedule["betas"], rtol=1e-6)
    np.testing.assert_allclose(np.cumprod(1 - betas)[schedule["at"]], schedule["alphas_cumprod"], rtol=2e-6)
    np.testing.assert_allclose(cosine_betas(8), facts["short_betas"], rtol=1e-6)


@pytest.fixture(scope="module")
def med_sampling():
    """Golden inputs and outputs, and the network as a function of (sample, timestep); axes as the network sees them."""
    meta, state, inputs, outputs = load_golden("med_sampling")
    model = convert_state_dict("med-biflownet", state, norm_num_groups=6, num_dit_heads=4, axis_order="xyz")

    @torch.no_grad()
    def predict(sample, timestep):
        return model(sample, timestep, torch.tensor(meta["config"]["labels"])).sample

    return meta, inputs, outputs, predict


def test_noising_and_posterior_mean_of_the_golden_file(med_sampling):
    meta, inputs, outputs, predict = med_sampling
    (t,) = meta["config"]["timesteps"]
    scheduler = make_scheduler("med-ddpm")
    scheduler.set_timesteps(1000)
    noisy = scheduler.add_noise(inputs["x"].clamp(-1, 1), inputs["q_noise"], torch.tensor([t]))
    torch.testing.assert_close(noisy, outputs["noisy"], atol=meta["atol"], rtol=0)
    _Replay([torch.zeros_like(inputs["x"])]).install(scheduler)
    mean = scheduler.step(predict(inputs["x"], t), t, inputs["x"]).prev_sample
    torch.testing.assert_close(mean, outputs["mean"], atol=meta["atol"], rtol=0)
    log_variance = float(scheduler._get_variance(t).log())
    assert log_variance == pytest.approx(meta["facts"]["log_variance"][0], abs=1e-3)


def test_ancestral_chain_of_the_golden_file(med_sampling):
    meta, inputs, outputs, predict = med_sampling
    steps = meta["config"]["short_steps"]
    scheduler = make_scheduler("med-ddpm", num_train_timesteps=steps, trained_betas=cosine_betas(steps))
    scheduler.set_timesteps(steps)
    _Replay([inputs[f"ddpm.noise{step}"] for step in range(steps)]).install(scheduler)
    sample = inputs["x"]
    for t in scheduler.timesteps:
        sample = scheduler.step(predict(sample, t), t, sample).prev_sample
    torch.testing.assert_close(sample, outputs["ddpm"], atol=meta["atol"], rtol=0)


def test_official_ddim_rule_of_the_golden_file(med_sampling):
    """Times and end are unlike any DDIM of diffusers: the last step goes from 0 to 0 and leaves its noise."""
    meta, inputs, outputs, predict = med_sampling
    alpha_bar = torch.tensor(cosine_betas(), dtype=torch.float64).neg().add(1).cumprod(0)
    times = torch.linspace(0, 999, meta["config"]["ddim_steps"]).int().tolist()[::-1]
    assert times == meta["facts"]["ddim_timesteps"]
    sample = inputs["x"]
    for now, after in zip(times, [*times[1:], 0], strict=True):
        noise = predict(sample, now)
        x0 = (sample - (1 - alpha_bar[now]).sqrt() * noise) / alpha_bar[now].sqrt()
        sample = alpha_bar[after].sqrt() * x0.clamp(-1, 1) + (1 - alpha_bar[after]).sqrt() * noise
        sample = sample.float()
    torch.testing.assert_close(sample, outputs["ddim"], atol=meta["atol"], rtol=0)


@pytest.mark.parametrize("name", [name for name in SUPPORTED_SCHEDULERS if name not in ("flow-euler", "deis")])
def test_every_solver_of_the_cosine_diffusion_ends_at_the_clean_sample(name):
    """A network that knows the clean sample is believed in the end: the last step lands on alpha 1."""
    scheduler = swap_scheduler(make_scheduler("med-dpm++"), name)
    assert scheduler.config["prediction_type"] == "epsilon" and scheduler.config["trained_betas"] == cosine_betas()
    scheduler.set_timesteps(20)
    target = torch.rand(1, 4, 2, 3, 4) * 2 - 1
    sample = torch.randn(target.shape) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        epsilon = output_from_x0(scheduler, target, t, sample)
        sample = scheduler.step(epsilon, t, sample).prev_sample
    torch.testing.assert_close(sample, target, atol=2e-3, rtol=0)


def test_the_fast_preset_skips_times_without_signal():
    scheduler = make_scheduler("med-dpm++")
    scheduler.set_timesteps(50)
    assert len(scheduler.timesteps) == 50
    first = scheduler.timesteps[0]
    assert 900 < first < 999 and scheduler.alphas_cumprod[first].sqrt() > 5e-3
