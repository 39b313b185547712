"""Pictures while a model trains: the same few seeds at every validation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from voxdiff.training.arguments import TrainingArguments
from voxdiff.volumes import save_volumes


def save_validation_volumes(
    pipeline: Any,
    folder: Path,
    step: int,
    args: TrainingArguments,
    accelerator: Accelerator,
    inputs: Mapping[str, Any] | None = None,
) -> None:
    """Sample the pipeline with fixed seeds and write volumes, records and three-plane pictures to ``step-<step>/``.

    Args:
        pipeline: A pipeline holding the weights to look at.
        folder: Where the ``step-...`` folders go.
        step: Optimiser step.
        args: Number of volumes and of solver steps.
        accelerator: Its trackers get the pictures.
        inputs: Arguments of the pipeline's call, such as the conditions of ``num_validation_volumes`` subjects.
    """
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(args.seed + index) for index in range(args.num_validation_volumes)]
    output = pipeline(
        **(inputs or {}),
        batch_size=args.num_validation_volumes,
        num_inference_steps=args.validation_inference_steps,
        generator=generators,
    )
    volumes = save_volumes(output, folder / f"step-{step:06d}", png=True)
    pictures = [path.with_name(path.name.removesuffix(".nii.gz") + ".png") for path in volumes]
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in pictures])
            tracker.writer.add_images("validation", images, step, dataformats="NHWC")
