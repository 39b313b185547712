import sys

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import make_pipeline, make_unet
from training_runs import RandomVolumes, assert_same_run, make_trainer, read_json, run_record

from voxdiff.training import Trainer, TrainingArguments, make_accelerator
from voxdiff.training.log import read_log
from voxdiff.training.objective_wavelet import WaveletDiffusionObjective

# Adam turns rounding errors of tiny gradients into steps of the size of the learning rate
SLOWLY = {"learning_rate": 1e-4, "lr_warmup_steps": 4}


class Killed(BaseException):
    pass


class KilledAt(WaveletDiffusionObjective):
    def __init__(self, pipeline, step):
        super().__init__(pipeline)
        self.step = step

    def __call__(self, model, batch, noise):
        if batch["step"][0] == self.step:
            raise Killed
        return super().__call__(model, batch, noise)


def train_and_kill(folder, step, **arguments):
    pipeline = make_pipeline()
    with pytest.raises(Killed):
        make_trainer(folder, pipeline=pipeline, objective=KilledAt(pipeline, step), **arguments).train()


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler": "cosine", "lr_warmup_steps": 3, "logging_steps": 3, "adam_weight_decay": 0.1},
        {"gradient_accumulation_steps": 2, "train_batch_size": 1, "mixed_precision": "bf16"},
        {"dataloader_num_workers": 1, "validation_steps": 3, "validation_inference_steps": 1},
    ],
)
def test_a_killed_run_resumes_bit_for_bit(tmp_path, settings):
    make_trainer(tmp_path / "whole", **settings).train()
    train_and_kill(tmp_path / "killed", 3, **settings)  # in the fourth step, after checkpoint 2
    torch.manual_seed(1234)
    make_trainer(tmp_path / "killed", resume_from_checkpoint="latest", **settings).train()
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert len(read_log(tmp_path / "whole" / "training_log.jsonl")) == (2 if "logging_steps" in settings else 4)


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path):
    make_trainer(tmp_path / "whole").train()
    make_trainer(tmp_path / "halves", max_train_steps=2).train()
    make_trainer(tmp_path / "halves", resume_from_checkpoint="latest").train()
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_a_finished_run_is_left_as_it_is(tmp_path):
    make_trainer(tmp_path).train()
    before = run_record(tmp_path)
    make_trainer(tmp_path, resume_from_checkpoint="latest").train()
    assert all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(before[key])) for key, value in run_record(tmp_path).items()
    )


def test_latest_of_nothing_is_a_new_run(tmp_path):
    make_trainer(tmp_path / "new").train()
    make_trainer(tmp_path / "latest", resume_from_checkpoint="latest").train()
    assert_same_run(tmp_path / "new", tmp_path / "latest")


def test_micro_batches_are_the_batch(tmp_path, monkeypatch):
    make_trainer(tmp_path / "whole", **SLOWLY).train()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")  # what the launcher says does not count
    split = {"train_batch_size": 1, "gradient_accumulation_steps": 2, **SLOWLY}
    make_trainer(tmp_path / "split", **split).train()
    assert_same_run(tmp_path / "whole", tmp_path / "split", tolerance=1e-6)


def test_a_run_may_be_split_otherwise_when_resumed(tmp_path):
    make_trainer(tmp_path / "whole", max_train_steps=3, **SLOWLY).train()
    make_trainer(tmp_path / "split", max_train_steps=1, **SLOWLY).train()  # an odd number of micro-batches
    split = {"train_batch_size": 1, "gradient_accumulation_steps": 2, "max_train_steps": 3, **SLOWLY}
    make_trainer(tmp_path / "split", resume_from_checkpoint="latest", **split).train()
    assert_same_run(tmp_path / "whole", tmp_path / "split", tolerance=1e-6, checkpoint="checkpoint-3")


def test_another_seed_is_another_run(tmp_path):
    make_trainer(tmp_path / "a").train()
    make_trainer(tmp_path / "b", seed=1).train()
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "a", tmp_path / "b", tolerance=1e-3)


def test_a_look_does_not_change_the_run(tmp_path):
    make_trainer(tmp_path / "blind").train()
    make_trainer(tmp_path / "seen", validation_steps=2, validation_inference_steps=2, report_to="tensorboard").train()
    assert_same_run(tmp_path / "blind", tmp_path / "seen")
    folder = tmp_path / "seen" / "validation"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000004"]
    pictures = [(folder / step / "volume-0000.png").read_bytes() for step in ("step-000002", "step-000004")]
    assert pictures[0] != pictures[1]
    assert [read_json(folder / "step-000004" / f"volume-000{index}.json")["seed"] for index in (0, 1)] == [0, 1]
    assert next((tmp_path / "seen" / "logs").rglob("events.out.tfevents*")).stat().st_size > 10_000  # the pictures


def test_a_translation_model_is_shown_conditions(tmp_path, translation_pipe):
    conditions = [{"t1c": torch.rand(16, 16, 8), "t2w": torch.rand(16, 16, 8)} for _ in range(2)]
    settings = {"validation_steps": 2, "validation_inference_steps": 1, "max_train_steps": 2}
    make_trainer(tmp_path, pipeline=translation_pipe, inputs={"condition_volumes": conditions}, **settings).train()
    record = read_json(tmp_path / "validation" / "step-000002" / "volume-0001.json")
    assert "t1c" in str(record["conditions"])


def test_bf16_computes_in_16_bit_and_keeps_weights_in_32(tmp_path):
    make_trainer(tmp_path / "full").train()
    trainer = make_trainer(tmp_path / "half", mixed_precision="bf16")
    seen = []
    trainer.network.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    pipeline = trainer.train()
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in pipeline.unet.parameters()} == {torch.float32}
    full, half = run_record(tmp_path / "full"), run_record(tmp_path / "half")
    assert 0 < abs(full["1.loss"] - half["1.loss"]) < 0.01 * full["1.loss"]


def test_fp16_needs_a_gpu(tmp_path):
    with pytest.raises(ValueError, match=r"fp16 cannot be trained on cpu; choose --mixed_precision bf16"):
        make_trainer(tmp_path, mixed_precision="fp16")


def test_a_tracker_has_to_be_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install voxdiff\[train\]"):
        make_trainer(tmp_path, report_to="tensorboard")


def test_gradient_checkpointing_gives_the_same_gradients(tmp_path):
    gradients = {}
    for flag in (False, True):
        trainer = make_trainer(tmp_path, gradient_checkpointing=flag)
        assert trainer.network.is_gradient_checkpointing is flag
        trainer._loss(trainer.model, next(iter(trainer._loader(0)))).backward()
        gradients[flag] = [parameter.grad for parameter in trainer.network.parameters()]
    assert all(torch.equal(left, right) for left, right in zip(gradients[False], gradients[True], strict=True))


def test_channels_last_changes_the_layout_only(tmp_path):
    trainer = make_trainer(tmp_path / "last")
    assert trainer.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last_3d)
    trainer.train()
    make_trainer(tmp_path / "first", channels_last=False).train()
    assert_same_run(tmp_path / "last", tmp_path / "first", tolerance=1e-3)


def test_the_average_has_the_step_s_weight(tmp_path):
    start = make_unet().state_dict()
    averaged = make_trainer(tmp_path, max_train_steps=1).train().unet.state_dict()
    last = type(make_unet()).from_pretrained(tmp_path / "checkpoint-1" / "unet").state_dict()
    for name, value in averaged.items():
        assert torch.allclose(value, start[name] + (1 - 2 / 11) * (last[name] - start[name]), atol=1e-6)


def test_without_an_average_the_last_weights_are_the_result(tmp_path):
    pipeline = make_trainer(tmp_path, use_ema=False).train()
    assert not (tmp_path / "checkpoint-4" / "unet_ema").exists()
    saved = type(pipeline.unet).from_pretrained(tmp_path / "checkpoint-4" / "unet").state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in pipeline.unet.state_dict().items())


def test_the_log_has_the_mean_loss_and_the_learning_rate(tmp_path):
    make_trainer(tmp_path / "each").train()
    make_trainer(tmp_path / "pairs", logging_steps=2, lr_warmup_steps=4).train()
    each = [record["loss"] for record in read_log(tmp_path / "each" / "training_log.jsonl")]
    pairs = read_log(tmp_path / "pairs" / "training_log.jsonl")
    assert [record["step"] for record in pairs] == [2, 4]
    assert [record["learning_rate"] for record in pairs] == pytest.approx([0.5e-2, 1e-2])
    assert pairs[0]["loss"] == pytest.approx(each[0], rel=0.5)
    assert read_json(tmp_path / "pairs" / "run.json")["lr_warmup_steps"] == 4


def test_it_learns(tmp_path):
    dataset = RandomVolumes()
    dataset.items = [{"image": torch.linspace(-1, 1, 16).expand(1, 16, 8, 16).mT.contiguous()}]
    pipeline = make_pipeline(make_unet(block_out_channels=(8, 8)))
    settings = {"max_train_steps": 40, "checkpointing_steps": 40, "logging_steps": 10, "ema_decay": 0.5}
    make_trainer(tmp_path, pipeline=pipeline, dataset=dataset, **settings).train()
    losses = [record["loss"] for record in read_log(tmp_path / "training_log.jsonl")]
    assert losses[-1] < losses[0] / 3


def test_a_batch_is_of_one_bucket(tmp_path):
    dataset = RandomVolumes()
    dataset.items = [*dataset.items, *RandomVolumes(size=(8, 8, 8)).items]
    dataset.buckets = [range(5), range(5, 10)]
    trainer = make_trainer(tmp_path, dataset=dataset)
    shapes = [batch["image"].shape[2:] for batch in trainer._loader(0)]
    assert shapes == [(16, 16, 8), (8, 8, 8)] * 2
    trainer.train()


def test_a_model_on_its_own_is_trained_and_saved(tmp_path):
    """Without a pipeline the objective has to know what the model learns, and the caller how it is looked at."""
    unet, looks = make_unet(in_channels=1, out_channels=1), []

    def objective(model, batch, noise):
        loss = model(batch["image"], torch.zeros(2), return_dict=False)[0].square().mean()
        objective.terms = {"half": loss.detach() / 2}
        return loss

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    args = TrainingArguments(str(tmp_path), max_train_steps=4, validation_steps=2, logging_steps=2, max_grad_norm=None)
    validate = lambda shown, folder, step: looks.append((shown, folder, step))  # noqa: E731
    trainer = Trainer(make_accelerator(args), unet, None, objective, RandomVolumes(), args, validate=validate)
    result = trainer.train()
    assert looks == [(result, tmp_path / "validation", 2), (result, tmp_path / "validation", 4)]
    saved = type(unet).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in result.state_dict().items())
    assert {"model", "model_ema"} <= {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    for record in read_log(tmp_path / "training_log.jsonl"):
        assert record["half"] == pytest.approx(record["loss"] / 2, abs=1e-6)
