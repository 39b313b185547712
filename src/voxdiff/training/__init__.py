"""One training loop on Accelerate, EMA, checkpoints, and one objective a method."""

from voxdiff.training.accelerator import make_accelerator
from voxdiff.training.arguments import TrainingArguments
from voxdiff.training.data_arguments import DataArguments
from voxdiff.training.loop import Trainer

__all__ = ["DataArguments", "Trainer", "TrainingArguments", "make_accelerator"]
