"""Arguments of a training run that every method shares; saved as run.json beside the checkpoints."""

from dataclasses import dataclass, field
from typing import Any

LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")

_CHOICES = {
    "mixed_precision": (None, "no", "bf16", "fp16"),
    "report_to": ("none", "tensorboard"),
    "lr_scheduler": LR_SCHEDULERS,
}
_AT_LEAST_ONE = [
    "max_train_steps",
    "train_batch_size",
    "gradient_accumulation_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "logging_steps",
    "num_validation_volumes",
    "validation_inference_steps",
]
_NOT_NEGATIVE = ["lr_warmup_steps", "adam_weight_decay", "seed", "dataloader_num_workers", "validation_steps"]
_POSITIVE = ["learning_rate", "adam_epsilon", "max_grad_norm"]
_BELOW_ONE = ["adam_beta1", "adam_beta2", "ema_decay"]


def option(default: Any, text: str) -> Any:
    """A dataclass field with a default and the help text of its command-line option."""
    return field(default=default, metadata={"help": text})


@dataclass
class TrainingArguments:
    """How long, how large, how fast, where to; the names are those of diffusers' example scripts."""

    output_dir: str = field(metadata={"help": "Folder for the pipeline, checkpoints, log and validation pictures."})
    max_train_steps: int = option(10_000, "Optimiser steps in all, also when resuming.")
    train_batch_size: int = option(2, "Samples per process and micro-batch.")
    gradient_accumulation_steps: int = option(1, "Micro-batches per optimiser step.")
    learning_rate: float = option(1e-4, "Peak learning rate of AdamW.")
    lr_scheduler: str = option("constant_with_warmup", ", ".join(LR_SCHEDULERS) + ".")
    lr_warmup_steps: int = option(0, "Optimiser steps of warm-up.")
    adam_beta1: float = option(0.9, "AdamW beta 1.")
    adam_beta2: float = option(0.999, "AdamW beta 2.")
    adam_weight_decay: float = option(0.0, "AdamW weight decay.")
    adam_epsilon: float = option(1e-8, "AdamW epsilon.")
    max_grad_norm: float | None = option(1.0, "Gradients are scaled down to this norm; None: as they are.")
    mixed_precision: str | None = option(
        None, "no, bf16 or fp16; default: what accelerate launch says. The weights stay float32."
    )
    channels_last: bool = option(True, "Keep weights in channels_last_3d (faster convolutions in 16 bit).")
    gradient_checkpointing: bool = option(False, "Trade time for memory.")
    use_ema: bool = option(True, "Average the weights; validation and the final pipeline use the average.")
    ema_decay: float = option(0.9999, "Decay of the average once warmed up.")
    seed: int = option(0, "Seed of weights, order, noise and timesteps.")
    dataloader_num_workers: int = option(0, "Worker processes that read data.")
    checkpointing_steps: int = option(1000, "Optimiser steps between checkpoints.")
    checkpoints_total_limit: int = option(3, "Checkpoints kept; the oldest are removed.")
    resume_from_checkpoint: str | None = option(None, "'latest' or the path of a checkpoint.")
    logging_steps: int = option(50, "Optimiser steps between lines of training_log.jsonl.")
    report_to: str = option("none", "none or tensorboard.")
    validation_steps: int = option(0, "Optimiser steps between validation pictures; 0 for none.")
    num_validation_volumes: int = option(2, "Volumes per validation.")
    validation_inference_steps: int = option(25, "Solver steps of the validation volumes.")
    push_to_hub: bool = option(False, "Publish the final pipeline, its card and its log on the Hugging Face Hub.")
    hub_model_id: str | None = option(None, "Repository to publish to: organisation/name.")
    hub_private_repo: bool = option(False, "Create that repository as a private one.")

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            self._require(name, getattr(self, name) in allowed, f"choose one of {', '.join(filter(None, allowed))}")
        for name in _AT_LEAST_ONE:
            self._require(name, getattr(self, name) >= 1, "give a whole number of at least 1")
        for name in _NOT_NEGATIVE:
            self._require(name, getattr(self, name) >= 0, "give a number of at least 0")
        for name in _POSITIVE:
            value = getattr(self, name)
            self._require(name, value is None or value > 0, "give a number above 0")
        for name in _BELOW_ONE:
            self._require(name, 0 <= getattr(self, name) < 1, "give a number from 0 up to, but not, 1")
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            raise ValueError(
                "--lr_scheduler constant has no warm-up; use constant_with_warmup or drop --lr_warmup_steps."
            )
        if self.push_to_hub != (self.hub_model_id is not None) or (self.hub_private_repo and not self.push_to_hub):
            raise ValueError("--push_to_hub and --hub_model_id go together, --hub_private_repo only with them.")

    def _require(self, name: str, fulfilled: bool, advice: str) -> None:
        if not fulfilled:
            raise ValueError(f"--{name} is {getattr(self, name)}; {advice}.")
