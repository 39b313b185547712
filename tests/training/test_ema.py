import pytest
import torch
from torch import nn

from voxdiff.training.ema import ExponentialMovingAverage


def test_it_is_the_textbook_average_once_warmed_up():
    model = nn.Linear(3, 2)
    ema = ExponentialMovingAverage(model, decay=0.9)
    expected = model.weight.detach().clone()
    for step in range(200, 206):
        nn.init.normal_(model.weight)
        ema.update(model, step)
        expected = 0.9 * expected + 0.1 * model.weight.detach()
    assert torch.allclose(ema.model.weight, expected, atol=1e-6)


@pytest.mark.parametrize("step", [1, 7])
def test_the_decay_warms_up(step):
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = ExponentialMovingAverage(model, decay=0.9999)
    nn.init.ones_(model.weight)
    ema.update(model, step)
    assert ema.model.weight.item() == pytest.approx(1 - (1 + step) / (10 + step))


def test_the_copy_is_apart_and_asks_for_no_gradient():
    model = nn.BatchNorm1d(2)
    ema = ExponentialMovingAverage(model, decay=0.5)
    model(torch.randn(8, 2) + 3)
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert not ema.model.training
    assert model.training
    assert torch.equal(ema.model.running_mean, torch.zeros(2))
    ema.update(model, 1)
    assert torch.equal(ema.model.running_mean, model.running_mean)
