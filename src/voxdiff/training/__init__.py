"""One training loop on Accelerate, EMA, checkpoints, and one objective a method."""

from voxdiff.training.arguments import TrainingArguments
from voxdiff.training.loop import Trainer, make_accelerator

__all__ = ["Trainer", "TrainingArguments", "make_accelerator"]
