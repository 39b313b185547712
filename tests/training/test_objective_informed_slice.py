import pytest
import torch
from torch import nn

from voxdiff.models.slice_positions import position_context, slice_position
from voxdiff.schedulers import make_scheduler
from voxdiff.training.batches import SampleNoise
from voxdiff.training.objective_informed_slice import (
    SliceGeneratorObjective,
    SliceObjective,
    VolumeTuningObjective,
    draw_windows,
)

DEPTH, WINDOW = 9, 4


class Recorder(nn.Module):
    """Predicts a constant for the channels of the latent and keeps what it was called with."""

    def forward(self, sample, timestep, context=None, *, return_dict, known=None):
        self.sample, self.timestep, self.context, self.known = sample, timestep, context, known
        return (torch.full_like(sample[:, :2], 0.5),)


def make_batch(size=3, depth=DEPTH):
    """Latents of two channels whose values tell the volume and the slice; masks have the negative values."""
    places = torch.arange(depth).float() + 100 * torch.arange(size).float()[:, None]
    image = places[:, None, None, None].expand(-1, 2, 3, 5, -1).clone()
    return {"image": image, "mask": -image, "step": [7] * size, "place": list(range(size))}


def loss_of(objective, model, batch):
    return objective(model, batch, SampleNoise(0, batch))


def scheduler():
    """Predicts the clean sample: the target is what went in."""
    return make_scheduler("wdm-ddim")


def slice_of(latents):
    """Volume slice whose latent each of these is."""
    return latents[..., 0, 0] % 100


def test_every_window_of_the_volume_is_drawn_and_image_and_mask_stay_together():
    batch = make_batch(400)
    images, masks = draw_windows(batch, WINDOW, SampleNoise(0, batch))
    assert torch.equal(images, -masks)
    starts = images[:, 0, 0, 0, 0] % 100
    assert torch.equal(images[:, 0, 0, 0], images[:, 0, 0, 0, :1] + torch.arange(WINDOW))
    counts = torch.bincount(starts.long(), minlength=DEPTH)
    assert (counts[: DEPTH - WINDOW + 1] > 40).all()
    assert counts.sum() == counts[: DEPTH - WINDOW + 1].sum()


def test_a_window_may_be_the_whole_volume_but_not_more():
    batch = make_batch(depth=WINDOW)
    assert torch.equal(draw_windows(batch, WINDOW, SampleNoise(0, batch))[0], batch["image"])
    with pytest.raises(ValueError, match="have 4 slices, fewer than a window of 5; lower --window"):
        draw_windows(batch, WINDOW + 1, SampleNoise(0, batch))


def test_each_slice_has_its_own_time_and_a_slice_of_its_window_beside_it():
    batch, model = make_batch(50), Recorder()
    loss_of(SliceObjective(scheduler(), window=WINDOW), model, batch)
    noised, masks, informed = model.sample.unflatten(0, (50, WINDOW)).chunk(3, dim=2)
    assert len(model.timestep.unique()) > 150
    window = slice_of(-masks[:, :, 0])
    assert torch.equal(window, window[:, :1] + torch.arange(WINDOW))
    chosen = slice_of(informed[:, :, 0])
    assert torch.equal(chosen, chosen[:, :1].expand(-1, WINDOW))
    assert torch.equal(informed[:, 0, 0, 0, 0] // 100, torch.arange(50).float())
    assert set((chosen[:, 0] - window[:, 0]).tolist()) == set(range(WINDOW))
    assert noised.shape == masks.shape


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_the_loss_is_the_distance_to_the_target(prediction_type):
    """Close to the data the sample is known, close to the noise the noise is."""
    batch = make_batch(2)
    chosen = make_scheduler("wdm-ddim", prediction_type=prediction_type, num_train_timesteps=1)
    model = Recorder()
    loss = loss_of(SliceObjective(chosen, window=WINDOW), model, batch)
    alpha, sigma = chosen.alphas_cumprod[0].sqrt(), (1 - chosen.alphas_cumprod[0]).sqrt()
    clean, noised = -model.sample[:, 2:4], model.sample[:, :2]
    noise = (noised - alpha * clean) / sigma
    target = {"sample": clean, "epsilon": noise, "v_prediction": alpha * noise - sigma * clean}[prediction_type]
    assert torch.isclose(loss, (target - 0.5).square().mean(), rtol=1e-4)


@pytest.mark.parametrize("objective", [SliceObjective, VolumeTuningObjective])
def test_the_baseline_sees_no_informed_slice(objective):
    model = Recorder()
    loss_of(objective(scheduler(), window=WINDOW, informed_slice=False), model, make_batch())
    assert model.sample.shape[1] == 4


@pytest.mark.parametrize(("weighting", "mean", "above"), [("published", 4 / 9, 5 / 12), ("uniform", 1 / 2, 1 / 2)])
def test_a_window_has_one_time_drawn_with_the_weighting(weighting, mean, above):
    batch, model = make_batch(4000), Recorder()
    loss_of(VolumeTuningObjective(scheduler(), window=1, timestep_weighting=weighting), model, batch)
    times = model.timestep.float()
    assert times.shape == (4000,)
    assert abs(times.mean() / 999 - mean) < 0.02
    assert abs((times >= 500).float().mean() - above) < 0.025


def test_without_the_indicator_no_slice_is_known():
    batch, model = make_batch(), Recorder()
    loss_of(VolumeTuningObjective(scheduler(), window=WINDOW), model, batch)
    assert model.known is None
    assert not torch.isclose(model.sample[:, :2], -model.sample[:, 2:4]).all(dim=(1, 2, 3)).any()


def test_known_slices_are_clean_runs_from_an_end_and_the_informed_one_is_the_innermost():
    batch, model = make_batch(600), Recorder()
    loss_of(VolumeTuningObjective(scheduler(), window=WINDOW, known_share=0.7), model, batch)
    noised, masks, informed = model.sample.chunk(3, dim=1)
    known = model.known
    clean = (noised == -masks).all(dim=1).all(dim=1).all(dim=1)
    assert torch.equal(clean, known)
    continued = known.any(1)
    assert abs(continued.float().mean() - 0.7) < 0.06
    numbers = known.sum(1)
    assert set(numbers.tolist()) == set(range(WINDOW))
    assert not known.all(1).any()
    first, last = known[:, 0] & continued, known[:, -1] & continued
    assert torch.equal(first ^ last, continued)
    assert abs(first.float().sum() / continued.float().sum() - 0.5) < 0.1
    runs = (known[:, 1:] != known[:, :-1]).sum(1)
    assert (runs <= 1).all()
    place = (informed - -masks[..., :1])[:, 0, 0, 0, 0]
    innermost = torch.where(first, numbers - 1, WINDOW - numbers)
    assert torch.equal(place[continued], innermost[continued].float())
    assert set(place[~continued].tolist()) == set(range(WINDOW))


def test_known_slices_are_left_out_of_the_loss_and_windows_count_alike():
    batch, model = make_batch(40), Recorder()
    loss = loss_of(VolumeTuningObjective(scheduler(), window=WINDOW, known_share=0.8), model, batch)
    errors = (-model.sample[:, 2:4] - 0.5).square().mean((1, 2, 3))
    windows = [error[~known].mean() for error, known in zip(errors, model.known, strict=True)]
    assert torch.isclose(loss, torch.stack(windows).mean())


def test_the_generator_is_told_where_each_slice_lies():
    batch, model = make_batch(60), Recorder()
    objective = SliceGeneratorObjective(scheduler(), slices_per_volume=3, position_rule="official", context_dim=8)
    loss = loss_of(objective, model, batch)
    assert model.sample.shape == (180, 2, 3, 5)
    assert (model.context.shape, model.timestep.shape) == ((180, 1, 8), (180,))
    expected = [position_context(torch.tensor([slice_position(place, DEPTH, "official")]), 8) for place in range(DEPTH)]
    distances = torch.cdist(model.context[:, 0], torch.cat(expected)[:, 0], compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.min(1).values.max() < 1e-6
    places = distances.argmin(1)
    assert set(places.tolist()) == set(range(DEPTH))
    clean = places + 100 * torch.arange(60).repeat_interleave(3)
    assert torch.isclose(loss, (clean - 0.5).square().mean())


@pytest.mark.parametrize(
    "objective",
    [
        SliceObjective(scheduler(), window=WINDOW),
        VolumeTuningObjective(scheduler(), window=WINDOW, known_share=0.5),
        SliceGeneratorObjective(scheduler(), slices_per_volume=2, context_dim=8),
    ],
)
def test_a_volume_is_treated_the_same_in_any_batch(objective):
    model, batch = Recorder(), make_batch(6)
    loss_of(objective, model, batch)
    count = len(model.sample) // 6
    whole, times = model.sample[4 * count : 5 * count], model.timestep[4 * count : 5 * count]
    loss_of(objective, model, {name: value[4:5] for name, value in batch.items()})
    assert torch.equal(model.sample, whole)
    assert torch.equal(model.timestep, times)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timestep_weighting": "late"}, "weighting is 'late'; choose one of published, uniform"),
        ({"known_share": 1.5}, "known slices is 1.5; give one from 0 to 1"),
        ({"known_share": 0.5, "informed_slice": False}, "to a model with an informed slice"),
        ({"known_share": 0.5, "window": 1}, "at least two slices a window"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VolumeTuningObjective(scheduler(), **options)
