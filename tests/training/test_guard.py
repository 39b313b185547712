import json

import pytest
import torch
from conftest import make_pipeline
from torch import nn
from training_runs import make_trainer

from voxdiff.training.guard import first_nonfinite_layer
from voxdiff.training.objective_wavelet import WaveletDiffusionObjective


class NanGradient(torch.autograd.Function):
    """The identity, whose gradient is not a number."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


class SpoiltBackward(nn.Module):
    def __init__(self, spoilt):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.spoilt = spoilt

    def forward(self, tensor):
        for index, layer in enumerate(self.layers):
            tensor = layer(tensor)
            if index == self.spoilt:
                tensor = NanGradient.apply(tensor)
        return tensor


@pytest.mark.parametrize("spoilt", [0, 2])
def test_a_gradient_is_named_where_it_appears_not_where_it_arrives(spoilt):
    model = SpoiltBackward(spoilt)
    where = first_nonfinite_layer(model, lambda: model(torch.ones(2, 4)).square().mean())
    assert where == f"the gradient of layer 'layers.{spoilt}'"


def test_an_output_is_named_before_any_gradient():
    model = SpoiltBackward(spoilt=0)
    model.layers[2].weight.data[0, 0] = float("inf")
    where = first_nonfinite_layer(model, lambda: model(torch.ones(2, 4)).square().mean())
    assert where == "the output of layer 'layers.2'"


def test_a_loss_and_nothing_at_all():
    model = SpoiltBackward(spoilt=None)
    assert "loss" in first_nonfinite_layer(model, lambda: model(torch.ones(2, 4)).mean() / 0)
    assert first_nonfinite_layer(model, lambda: model(torch.ones(2, 4)).mean()) is None


def test_hooks_are_gone_afterwards():
    model = SpoiltBackward(spoilt=None)
    with pytest.raises(RuntimeError, match="broken"):
        first_nonfinite_layer(model, lambda: (_ for _ in ()).throw(RuntimeError("broken")))
    assert not any(module._forward_hooks for module in model.modules())


class Spoil(WaveletDiffusionObjective):
    """Spoils the network, or a gradient, at one step (and one micro-batch) of a run."""

    def __init__(self, pipeline, *, step, place=0, gradient_only=False):
        super().__init__(pipeline)
        self.step, self.place, self.gradient_only = step, place, gradient_only

    def __call__(self, model, batch, noise):
        loss = super().__call__(model, batch, noise)
        if batch["step"][0] == self.step and self.place in batch["place"]:
            if self.gradient_only:
                return NanGradient.apply(loss)
            return loss * float("nan")
        return loss


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_run_stops_keeps_its_checkpoints_and_resumes(tmp_path, gradient_only, accumulation):
    settings = {
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": 2 // accumulation,
        "max_train_steps": 6,
    }
    pipeline = make_pipeline()
    objective = Spoil(pipeline, step=3, gradient_only=gradient_only)  # the first micro-batch, not the last
    with pytest.raises(FloatingPointError, match=r"stopped at step 4: the .*(loss|layer 'conv_out').* not finite"):
        make_trainer(tmp_path, pipeline=pipeline, objective=objective, **settings).train()
    assert sorted(path.name for path in tmp_path.glob("*checkpoint-*")) == ["checkpoint-2"]
    assert [json.loads(line)["step"] for line in (tmp_path / "training_log.jsonl").open()] == [1, 2, 3]
    make_trainer(tmp_path, resume_from_checkpoint="latest", **settings).train()
    assert (tmp_path / "model_index.json").exists()


def test_a_poisoned_weight_is_named(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.network.up_blocks[0].resnets[1].conv2.weight.data[0, 0, 1, 1, 1] = float("nan")
    with pytest.raises(FloatingPointError, match=r"step 1: the output of layer 'up_blocks\.0\.resnets\.1\.conv2'"):
        trainer.train()


@pytest.mark.parametrize(("scale", "stops"), [(65536.0, False), (1.0, False), (0.5, True)])
def test_fp16_skips_steps_until_no_scale_helps(tmp_path, scale, stops):
    trainer = make_trainer(tmp_path)
    trainer.accelerator.scaler = type("Scaler", (), {"get_scale": lambda self: scale})()
    batch = next(iter(trainer._loader(0)))
    if not stops:
        return trainer._require_finite(torch.tensor(float("inf")), [batch])
    with pytest.raises(FloatingPointError, match="norm of the gradients"):
        trainer._require_finite(torch.tensor(float("inf")), [batch])
