"""What a stage of informed-slice training can be asked for: options, volumes, and the checkpoint to continue."""

from pathlib import Path

from voxdiff.models.layers_3d import nearest_valid_sizes
from voxdiff.training.arguments import TrainingArguments
from voxdiff.training.checkpoints import read_state
from voxdiff.training.informed_slice_arguments import InformedSliceArguments
from voxdiff.training.slice_source_arguments import SliceSourceArguments

_TASK = (
    *("stage", "informed_slice", "window", "slices_per_volume", "position_rule", "prediction_type", "known_share"),
    "timestep_weighting",
)


def require_options(data: SliceSourceArguments, model: InformedSliceArguments, args: TrainingArguments) -> None:
    """Raise ValueError if an option was given that the stage has no use for."""
    if args.channels_last:
        raise ValueError("--channels_last is a layout of 3D networks; leave it out.")
    if model.stage == "autoencoder" and data.latents_dir is not None:
        raise ValueError("--latents_dir belongs to the stages after the autoencoder; give it volumes with masks.")
    if model.stage in ("slice", "generator") and args.validation_steps:
        raise ValueError(f"--stage {model.stage} has no volumes to show; leave --validation_steps out.")
    if model.stage == "volume" and args.validation_steps and data.are_encoded:
        raise ValueError("--validation_steps needs masks to show volumes of; give the data, not --latents_dir alone.")
    if args.push_to_hub and model.stage != "volume":
        raise ValueError("Only a whole pipeline is published; give --push_to_hub to --stage volume.")


def require_volumes(
    model: InformedSliceArguments, *, grid: tuple[int, ...], divisor: int, volumes: int, batch: int
) -> None:
    """Raise ValueError if a stage cannot be trained on these volumes.

    Args:
        model: The stage and its options.
        grid: Voxels along x, y and z.
        divisor: What x and y must be divisible by.
        volumes: How many there are.
        batch: Volumes of a step, of all processes.
    """
    for axis, side in zip("xy", grid, strict=False):
        if side % divisor:
            raise ValueError(
                f"The volumes are {grid}, but x and y must be divisible by {divisor} for these networks: use "
                f"{nearest_valid_sizes(side, divisor)} along {axis} (--resolution)."
            )
    if model.stage in ("slice", "volume") and grid[2] < model.window_length:
        raise ValueError(
            f"The volumes have {grid[2]} slices, fewer than a window of {model.window_length}; lower --window."
        )
    if volumes < batch:
        raise ValueError(
            f"There are {volumes} volumes to train on, fewer than a batch of {batch}; add volumes, or lower "
            "--train_batch_size."
        )


def require_same_task(checkpoint: Path | None, model: InformedSliceArguments) -> None:
    """Raise ValueError if a run is resumed from the checkpoint of another task; what the trainer compares is left out."""
    if checkpoint is None:
        return
    before = read_state(checkpoint)["run"]["model"]
    for name in _TASK:
        if before[name] != getattr(model, name):
            raise ValueError(
                f"{checkpoint} was trained with --{name} {before[name]}, this run has {getattr(model, name)}; use the same "
                "settings, or another --output_dir."
            )
