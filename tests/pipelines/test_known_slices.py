import dataclasses

import pytest
import torch
from goldens import load_golden
from informed_slice_pipelines import make_informed_pipeline, make_slice_autoencoder

from voxdiff import convert_state_dict
from voxdiff.pipelines.known_slices import KnownSlices, check_known_slice_noise
from voxdiff.schedulers import SUPPORTED_SCHEDULERS, make_scheduler, swap_scheduler

SHAPE = (2, 4, 2, 2, 5)
SOLVERS = [name for name in SUPPORTED_SCHEDULERS if name != "flow-euler"]


@pytest.fixture
def known():
    slots = torch.tensor([[True, False, False, False, False], [False, False, False, True, True]])
    return KnownSlices(values=torch.randn(SHAPE), slots=slots)


def place(slots):
    return slots[:, None, None, None, :].expand(SHAPE)


def started(name, steps=10):
    scheduler = swap_scheduler(make_scheduler("gem-ddim"), name)
    scheduler.set_timesteps(steps)
    return scheduler


# --- the published sampler -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    """As our windows (1, channels, x, y, slices); the official ones have the slices first."""
    meta, state, inputs, outputs = load_golden("gem_ddim")
    tensors = {**inputs, **outputs}
    as_window = {name: value[0] if value.ndim == 5 else value for name, value in tensors.items()}
    windows = {name: value.permute(1, 2, 3, 0)[None] for name, value in as_window.items() if value.ndim == 4}
    vae = make_slice_autoencoder()
    pipe = make_informed_pipeline(convert_state_dict("gem3d-stage2", state), scheduler="gem-ddim", vae=vae)
    return meta, pipe, windows, outputs


@pytest.mark.parametrize("case", ["free", "up", "down"])
def test_the_official_sampler_of_a_window(golden, case, monkeypatch):
    """10 ancestral DDIM steps without known slices, and with the first or last one known."""
    meta, pipe, tensors, _ = golden
    slots = torch.zeros(1, 16, dtype=torch.bool)
    slots[0, {"free": [], "up": [0], "down": [15]}[case]] = True
    values = tensors["known"].expand(1, 4, 4, 4, 16)
    draws = [tensors[f"{case}.noise{number}"] for number in range(meta["facts"][f"{case}_draws"])]
    latents = draws.pop(0)
    for module in ("voxdiff.pipelines.known_slices", "diffusers.schedulers.scheduling_ddim"):
        monkeypatch.setattr(f"{module}.randn_tensor", lambda shape, **_: draws.pop(0).expand(shape))
    known = KnownSlices(values=values, slots=slots, noise="official")
    with torch.no_grad():
        made = pipe.denoise_window(
            latents, tensors["condition"], known, generator=None, num_inference_steps=10, eta=1.0
        )
    expected = tensors[case]
    if case != "free":
        # The official code leaves the noise of training timestep 0 in the known slice; ours is the slice itself.
        alpha_bar = pipe.scheduler.alphas_cumprod[0]
        (last,) = draws
        noisy = (alpha_bar**0.5 * values + (1 - alpha_bar) ** 0.5 * last)[..., :1]
        torch.testing.assert_close(expected[..., slots[0]], noisy, atol=meta["atol"], rtol=0)
        expected = known.restore(expected)
    torch.testing.assert_close(made, expected, atol=meta["atol"], rtol=0)


@pytest.mark.parametrize("steps", [10, 50, 200])
def test_the_official_schedule(golden, steps):
    scheduler = make_scheduler("gem-ddim")
    scheduler.set_timesteps(steps)
    official = {
        name: golden[3][f"schedule{steps}.{name}"].flip(0) for name in ("timesteps", "alphas", "alphas_prev", "sigmas")
    }
    assert scheduler.timesteps.tolist() == official["timesteps"].tolist()
    previous = scheduler.timesteps - 1000 // steps
    before = torch.where(previous >= 0, scheduler.alphas_cumprod[previous], scheduler.final_alpha_cumprod)
    torch.testing.assert_close(scheduler.alphas_cumprod[scheduler.timesteps], official["alphas"], atol=1e-6, rtol=0)
    torch.testing.assert_close(before, official["alphas_prev"], atol=1e-6, rtol=0)
    for timestep, earlier, sigma in zip(scheduler.timesteps, previous, official["sigmas"], strict=True):
        assert abs(scheduler._get_variance(timestep, earlier) ** 0.5 - sigma) < 1e-6


# --- the rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
def test_clean_slices_are_shown_as_they_are(known, name):
    shown = known.write(torch.randn(SHAPE), (scheduler := started(name)), 0, scheduler.timesteps[0])
    assert torch.equal(shown[place(known.slots)], known.values[place(known.slots)])


@pytest.mark.parametrize("noise", ["clean", "matched", "official"])
def test_other_slices_are_left_alone(known, noise):
    network_input, scheduler = torch.randn(SHAPE), started("ddim")
    shown = dataclasses.replace(known, noise=noise).write(network_input, scheduler, 3, scheduler.timesteps[3])
    assert torch.equal(shown[~place(known.slots)], network_input[~place(known.slots)])
    assert torch.equal(known.restore(shown), known.restore(network_input))


@pytest.mark.parametrize("name", SOLVERS)
def test_matched_slices_have_the_noise_of_the_others(name):
    """Known and unknown slices that hold the same and got the same noise look the same to the network."""
    scheduler, clean, noise = started(name), torch.randn(SHAPE), torch.randn(SHAPE)
    for index, timestep in enumerate(scheduler.timesteps[:3]):
        level = timestep.reshape(1).expand(2)
        others = scheduler.scale_model_input(scheduler.add_noise(clean, noise, level), timestep)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(SHAPE, generator=generator)
        known = KnownSlices(values=clean, slots=torch.ones(2, 5, dtype=torch.bool), noise="matched")
        shown = known.write(others, scheduler, index, timestep, generator.manual_seed(0))
        slope = (others - shown) / (noise - drawn)
        torch.testing.assert_close(slope, slope.mean().expand(SHAPE), atol=1e-3, rtol=1e-2)
        alpha_bar = scheduler.alphas_cumprod[timestep.round().long()]
        torch.testing.assert_close(slope.mean(), (1 - alpha_bar) ** 0.5, atol=5e-3, rtol=0)
        scheduler.step(torch.randn(SHAPE), timestep, clean)


def test_official_slices_are_nearly_clean_after_the_first_step(known):
    scheduler, official = started("ddim", 200), dataclasses.replace(known, noise="official")

    def share(index):
        generator = torch.Generator().manual_seed(1)
        shown = official.write(torch.zeros(SHAPE), scheduler, index, scheduler.timesteps[index], generator)
        drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
        flat = [values[place(known.slots)].flatten() for values in (known.values, drawn, shown)]
        return torch.linalg.lstsq(torch.stack(flat[:2], 1), flat[2][:, None]).solution[0].item()

    assert share(0) == pytest.approx(scheduler.alphas_cumprod[999].item() ** 0.5, abs=1e-5)
    assert share(1) == pytest.approx(scheduler.alphas_cumprod[199].item() ** 0.5, abs=1e-5)
    assert share(199) == pytest.approx(scheduler.alphas_cumprod[1].item() ** 0.5, abs=1e-5)
    assert share(0) < 0.07 and share(1) > 0.86


def test_without_known_slices_no_noise_is_drawn():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    known = KnownSlices(values=torch.zeros(SHAPE), slots=torch.zeros(2, 5, dtype=torch.bool), noise="matched")
    network_input, scheduler = torch.randn(SHAPE), started("ddim")
    assert known.write(network_input, scheduler, 0, scheduler.timesteps[0], generator) is network_input
    assert torch.equal(before, generator.get_state())


def test_unknown_rules_raise():
    with pytest.raises(ValueError, match="known_slice_noise is 'none'; use one of 'clean', 'matched', 'official'"):
        check_known_slice_noise("none", started("ddim"))
