import pytest
import torch
from torch import nn

from voxdiff.schedulers import make_scheduler
from voxdiff.training.batches import SampleNoise
from voxdiff.training.objective_slice_conditioned import SliceConditionedObjective
from voxdiff.training.slice_index_sampler import SliceIndexSampler

DEPTH = 9


class Recorder(nn.Module):
    """Predicts a value for the targets and a huge one for known slices, and keeps what it was called with."""

    def forward(self, sample, timestep, *, positions, known_slices=None, known=None, num_targets=None, return_dict):
        assert not return_dict
        self.sample, self.timestep, self.known_slices, self.positions = sample, timestep, known_slices, positions
        self.known = torch.zeros_like(positions, dtype=torch.bool) if known is None else known
        assert num_targets == (None if known is None else (~known).sum())
        shown = self.known[:, None, None, None]
        return (torch.where(shown, torch.full_like(sample, 1e9), torch.full_like(sample, 0.5)),)


def make_batch(places=(0, 1, 2), axis=2, step=7):
    """Volumes whose values tell the volume and the slice along the axis."""
    values = torch.arange(DEPTH).float() + 100 * torch.tensor(places).float()[:, None]
    volume = values[:, None, None, None].expand(-1, 1, 3, 5, -1).movedim(-1, 2 + axis)
    return {"t1": volume.contiguous(), "step": [step] * len(places), "place": list(places)}


def make_objective(scheduler=None, **options):
    sampler = SliceIndexSampler(max_slices=5, seed=0)
    scheduler = scheduler or make_scheduler("wdm-ddpm")
    return SliceConditionedObjective(scheduler, sampler, column="t1", **options)


def loss_of(objective, model, batch):
    return objective(model, batch, SampleNoise(0, batch))


def clean_slices(positions):
    """What :func:`make_batch` has at these positions ``(batch, slices)``."""
    values = 100 * torch.arange(len(positions))[:, None] + positions
    return values[:, None, None, None].expand(-1, 1, 3, 5, -1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_network_sees_slices_of_the_axis_at_their_positions(axis):
    model, mixed = Recorder(), 0
    for step in range(12):
        loss_of(make_objective(slice_axis=axis), model, make_batch(axis=axis, step=step))
        expected = clean_slices(model.positions)
        assert model.sample.shape == expected.shape
        assert not torch.isclose(model.sample, expected).all(dim=3).any()
        if model.known.any():
            assert torch.equal(model.known_slices, expected)
            mixed += 1
    assert 0 < mixed < 12


def test_targets_come_first_and_are_those_that_the_sampler_drew():
    model, mixed = Recorder(), 0
    for step in range(12):
        batch = make_batch(step=step)
        loss_of(make_objective(), model, batch)
        targets, observed = SliceIndexSampler(max_slices=5, seed=0).draw(DEPTH, step, SampleNoise(0, batch))
        assert torch.equal(model.positions, torch.cat([targets, observed], dim=1).float())
        assert torch.equal(model.known, torch.arange(model.known.shape[1]).expand(3, -1) >= targets.shape[1])
        mixed += bool(observed.numel())
    assert 0 < mixed < 12


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_the_loss_is_the_mean_distance_over_the_targets_alone(prediction_type):
    scheduler = make_scheduler("wdm-ddpm", prediction_type=prediction_type)
    model = Recorder()
    steps = 0
    for step in range(12):
        loss = loss_of(make_objective(scheduler), model, make_batch(step=step))
        alpha_cumprod = scheduler.alphas_cumprod[model.timestep].view(-1, 1, 1, 1, 1)
        alpha, sigma = alpha_cumprod.sqrt(), (1 - alpha_cumprod).sqrt()
        clean = clean_slices(model.positions)
        noise = (model.sample - alpha * clean) / sigma
        target = {"sample": clean, "epsilon": noise, "v_prediction": alpha * noise - sigma * clean}[prediction_type]
        errors = (target - 0.5).square()[(~model.known)[:, None, None, None].expand_as(target)]
        assert torch.isclose(loss, errors.mean(), rtol=1e-2)
        steps += bool(model.known.any())
    assert steps


def test_a_volume_has_one_time_and_volumes_have_several():
    model = Recorder()
    loss_of(make_objective(), model, make_batch(tuple(range(50))))
    assert model.timestep.shape == (50,)
    assert len(model.timestep.unique()) > 30


def test_the_loss_of_a_batch_is_the_mean_of_its_parts():
    model = Recorder()
    for step in range(4):
        parts = [loss_of(make_objective(), model, make_batch(places, step=step)) for places in [(0, 1), (2, 3)]]
        whole = loss_of(make_objective(), model, make_batch((0, 1, 2, 3), step=step))
        assert torch.isclose(whole, torch.stack(parts).mean(), rtol=1e-5)


def test_gradients_reach_the_network():
    class Linear(Recorder):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, sample, timestep, **arguments):
            return (self.weight * super().forward(sample, timestep, **arguments)[0],)

    model = Linear()
    loss_of(make_objective(), model, make_batch()).backward()
    assert model.weight.grad.abs() > 0
