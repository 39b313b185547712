import diffusers
import pytest
import torch
from conftest import make_pipeline, make_unet

from voxdiff.schedulers import make_scheduler
from voxdiff.schedulers.constraint import predict_x0
from voxdiff.training.batches import SampleNoise
from voxdiff.training.objective_wavelet import WaveletDiffusionObjective

DDPM = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=2e-2, beta_schedule="linear")


def make_batch(names=("image",), count=4):
    generator = torch.Generator().manual_seed(0)
    volumes = {name: torch.rand(count, 1, 16, 16, 8, generator=generator) * 2 - 1 for name in names}
    return {**volumes, "step": [3] * count, "place": list(range(count))}


class Oracle:
    """A network that knows the clean coefficients, and remembers what it was given."""

    def __init__(self, clean, predict):
        self.clean, self.predict = clean, predict

    def __call__(self, sample, timestep, return_dict):
        self.sample, self.timestep = sample, timestep
        noised = sample[:, : self.clean.shape[1]]
        return (self.predict(noised, self.clean, timestep),)


def ddpm_noise(noised, clean, timestep):
    """The noise that diffusers would have added."""
    alpha = DDPM.alphas_cumprod[timestep].view(-1, 1, 1, 1, 1)
    return (noised - alpha.sqrt() * clean) / (1 - alpha).sqrt()


PREDICTIONS = {
    "sample": lambda noised, clean, timestep: clean,
    "epsilon": ddpm_noise,
    "v_prediction": lambda noised, clean, timestep: DDPM.get_velocity(
        clean, ddpm_noise(noised, clean, timestep), timestep
    ),
    "flow": lambda noised, clean, timestep: (noised - clean) / (timestep / 1000).view(-1, 1, 1, 1, 1),
}


def scheduler_of(prediction_type, preset="wdm-dpm++"):
    if prediction_type == "flow":
        return make_scheduler("flow-matching")
    return make_scheduler(preset, prediction_type=prediction_type)


def run(pipeline, predict, batch=None):
    batch = batch or make_batch(pipeline.output_names)
    clean = pipeline.encode(torch.cat([batch[name] for name in pipeline.output_names], dim=1))
    oracle = Oracle(clean, predict)
    loss = WaveletDiffusionObjective(pipeline)(oracle, batch, SampleNoise(0, batch))
    return loss.item(), oracle


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("preset", ["wdm-dpm++", "wdm-ddpm"])
def test_a_network_that_knows_the_answer_has_no_loss(prediction_type, preset):
    pipeline = make_pipeline()
    pipeline.scheduler = scheduler_of(prediction_type, preset)
    loss, _ = run(pipeline, PREDICTIONS[prediction_type])
    assert loss < 1e-6
    wrong = PREDICTIONS["epsilon" if prediction_type == "sample" else "sample"]
    assert run(pipeline, wrong)[0] > 0.05


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_sampler_reads_the_target_as_the_clean_volume(prediction_type):
    scheduler = scheduler_of(prediction_type, "wdm-ddpm")
    scheduler.set_timesteps(1000)
    for timestep in (scheduler.timesteps[100], scheduler.timesteps[900]):
        clean, noise = torch.randn(2, 1, 8, 4, 4, 4)
        if prediction_type == "flow":
            noised = scheduler.scale_noise(clean, timestep[None], noise)
        else:
            noised = scheduler.add_noise(clean, noise, timestep[None])
        target = PREDICTIONS[prediction_type](noised, clean, timestep[None])
        assert torch.allclose(predict_x0(scheduler, target, timestep, noised), clean, atol=2e-2)


def test_the_noise_is_standard_and_each_sample_has_its_own_time():
    batch = make_batch(count=16)
    _, oracle = run(make_pipeline(), PREDICTIONS["sample"], batch)
    noise = ddpm_noise(oracle.sample, oracle.clean, oracle.timestep)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert len(oracle.timestep.unique()) == 16
    assert oracle.timestep.dtype == torch.int64


def test_flow_times_are_the_scheduler_s():
    pipeline = make_pipeline()
    pipeline.scheduler = scheduler_of("flow")
    _, oracle = run(pipeline, PREDICTIONS["flow"], make_batch(count=16))
    assert oracle.timestep.min() >= 0
    assert 500 < oracle.timestep.max() < 1000
    assert oracle.timestep.unique().numel() == 16


def test_conditions_enter_clean_behind_the_noised_volumes(translation_pipe):
    batch = make_batch(["t1n", "t1c", "t2w"])
    loss, oracle = run(translation_pipe, PREDICTIONS["sample"], batch)
    assert loss == 0
    assert oracle.sample.shape[1] == 24
    assert torch.equal(oracle.sample[:, 8:16], translation_pipe.encode(batch["t1c"]))
    assert torch.equal(oracle.sample[:, 16:], translation_pipe.encode(batch["t2w"]))
    assert not torch.allclose(oracle.sample[:, :8], oracle.clean, atol=0.1)


def test_several_volumes_and_voxel_space():
    several = make_pipeline(make_unet(16, 16), output_volumes={"t1": 0, "lesion": 1}, label_volumes={"lesion": 3})
    assert run(several, PREDICTIONS["sample"])[1].sample.shape == (4, 16, 8, 8, 4)
    voxels = make_pipeline(make_unet(1, 1), wavelet=None)
    loss, oracle = run(voxels, PREDICTIONS["sample"])
    assert loss == 0
    assert torch.equal(oracle.clean, make_batch()["image"])
    assert oracle.sample.shape == (4, 1, 16, 16, 8)


def test_the_loss_is_the_plain_mean_over_scaled_bands():
    scales = [3.0, *[0.25] * 7]
    pipeline = make_pipeline(band_scales=scales)
    loss, _ = run(pipeline, lambda noised, clean, timestep: torch.zeros_like(clean))
    bands = make_pipeline(band_scales=[1.0] * 8).encode(make_batch()["image"]) / torch.tensor(scales).view(8, 1, 1, 1)
    assert loss == pytest.approx(bands.square().mean().item(), rel=1e-5)
