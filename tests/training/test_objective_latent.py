import pytest
import torch
from biflownets import make_biflownet
from conftest import make_unet
from torch import nn

from voxdiff.schedulers import make_scheduler
from voxdiff.training.batches import SampleNoise
from voxdiff.training.diffusion_target import diffuse
from voxdiff.training.objective_latent import LatentDiffusionObjective

SCALARS = {"age": {"place": 0, "mean": 50.0, "std": 10.0}, "volume": {"place": 1, "mean": 2.0, "std": 1.0}}


class Recorder(nn.Module):
    """Predicts a constant and keeps what it was called with."""

    def forward(self, sample, timestep, *, return_dict, **conditions):
        self.conditions = conditions
        return (torch.full_like(sample, 0.5),)


def make_batch(size=2, **conditions):
    latents = torch.randn(size, 2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    return {"latents": latents, "step": [3] * size, "place": list(range(size)), **conditions}


def loss_of(model, batch, preset="med-ddpm", **options):
    objective = LatentDiffusionObjective(make_scheduler(preset), **options)
    return objective(model, batch, SampleNoise(0, batch))


@pytest.mark.parametrize(("loss_type", "power"), [("l1", 1), ("l2", 2)])
def test_the_loss_is_the_distance_to_the_target(loss_type, power):
    batch = make_batch()
    _, _, target = diffuse(make_scheduler("med-ddpm"), batch["latents"], SampleNoise(0, batch))
    expected = (target - 0.5).abs().pow(power).mean()
    assert torch.allclose(loss_of(Recorder(), batch, loss_type=loss_type), expected)


def test_conditions_are_dropped_in_their_shares_and_nothing_else_changes():
    size = 2000
    scalars = torch.stack([torch.arange(size) * 1.0, torch.full((size,), 7.0)], dim=1)
    batch, model = make_batch(size, class_labels=torch.arange(size) % 3, scalars=scalars), Recorder()
    loss = loss_of(model, batch, label_dropout=0.2, scalar_dropout=0.3)
    labels, absent = model.conditions["class_labels"], model.conditions["scalars"].isnan()
    without = labels == -1
    assert abs(without.float().mean() - 0.2) < 0.03
    assert absent[without].all()
    assert abs(absent[~without].float().mean(0) - 0.3).max() < 0.04
    both = (absent[~without, 0] & absent[~without, 1]).float().mean()
    assert abs(both - 0.09) < 0.03  # each is dropped on its own
    kept = ~without
    assert torch.equal(labels[kept], batch["class_labels"][kept])
    assert torch.equal(model.conditions["scalars"][~absent], scalars[~absent])
    assert not batch["scalars"].isnan().any()
    assert loss_of(model, batch) == loss
    assert torch.equal(model.conditions["scalars"], scalars)


def test_label_dropout_drops_all_scalars_together_where_there_are_no_classes():
    model = Recorder()
    loss_of(model, make_batch(400, scalars=torch.ones(400, 2)), label_dropout=0.3)
    absent = model.conditions["scalars"].isnan()
    assert torch.equal(absent[:, 0], absent[:, 1])
    assert abs(absent[:, 0].float().mean() - 0.3) < 0.08


def test_a_sample_is_treated_the_same_in_any_batch():
    model = Recorder()
    whole = make_batch(64, class_labels=torch.zeros(64, dtype=torch.long))
    loss_of(model, whole, label_dropout=0.5)
    expected = model.conditions["class_labels"][40:41]
    part = {name: value[40:41] for name, value in whole.items()}
    loss_of(model, part, label_dropout=0.5)
    assert torch.equal(model.conditions["class_labels"], expected)


def test_every_weight_of_a_conditioned_network_learns():
    model = make_biflownet(null_condition=True, optional_scalars=True, scalar_conditions=SCALARS).train()
    batch = make_batch(class_labels=torch.tensor([0, 2]), scalars=torch.tensor([[40.0, torch.nan], [60.0, 3.0]]))
    loss_of(model, batch).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("preset", ["med-dpm++", "flow-matching"])
def test_a_plain_unet_needs_no_conditions(preset):
    assert loss_of(make_unet(2, 2), make_batch(), preset).isfinite()


def test_half_precision_predictions_are_compared_in_float32():
    class Half(Recorder):
        def forward(self, *inputs, **options):
            return (super().forward(*inputs, **options)[0].bfloat16(),)

    assert loss_of(Half(), make_batch()).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "huber"}, "The loss is 'huber'; choose one of l1, l2"),
        ({"label_dropout": 1.0}, "label_dropout is 1.0; give a share from 0"),
        ({"scalar_dropout": -0.1}, "scalar_dropout is -0.1"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LatentDiffusionObjective(make_scheduler("med-ddpm"), **options)
