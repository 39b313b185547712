import pytest

from voxdiff.training import TrainingArguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_train_steps", 0),
        ("train_batch_size", 0),
        ("gradient_accumulation_steps", -1),
        ("checkpointing_steps", 0),
        ("checkpoints_total_limit", 0),
        ("logging_steps", 0),
        ("num_validation_volumes", 0),
        ("validation_inference_steps", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("adam_epsilon", 0.0),
        ("max_grad_norm", -1.0),
        ("adam_beta1", 1.0),
        ("adam_beta2", -0.1),
        ("ema_decay", 1.0),
        ("lr_warmup_steps", -1),
        ("adam_weight_decay", -0.1),
        ("seed", -1),
        ("dataloader_num_workers", -1),
        ("validation_steps", -1),
        ("lr_scheduler", "sawtooth"),
        ("mixed_precision", "fp8"),
        ("report_to", "wandb"),
    ],
)
def test_an_impossible_value_is_named_with_its_option(name, value):
    with pytest.raises(ValueError, match=rf"--{name} is .*; (give|choose) .*\.$"):
        TrainingArguments(output_dir="out", **{name: value})


@pytest.mark.parametrize("options", [{"push_to_hub": True}, {"hub_model_id": "org/name"}, {"hub_private_repo": True}])
def test_publishing_is_asked_for_whole(options):
    with pytest.raises(ValueError, match="go together"):
        TrainingArguments(output_dir="out", **options)


def test_the_defaults_are_possible():
    TrainingArguments(output_dir="out", push_to_hub=True, hub_model_id="org/name", hub_private_repo=True)


def test_gradients_may_stay_as_they_are():
    assert TrainingArguments(output_dir="out", max_grad_norm=None).max_grad_norm is None
