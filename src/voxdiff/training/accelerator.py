"""How the run is spread over devices and processes."""

from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, ProjectConfiguration

from voxdiff.training.arguments import TrainingArguments

# The main process reads the data and draws validation volumes alone; the others wait this long for it.
_PATIENCE = timedelta(hours=6)


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """The Accelerator of a run.

    Raises:
        ModuleNotFoundError: If the tracker is not installed.
        ValueError: If the device cannot compute in the precision.
    """
    if args.report_to == "tensorboard":
        try:
            import tensorboard  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "--report_to tensorboard needs the tensorboard package: pip install voxdiff[train]."
            ) from error
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        # A plugin, because `accelerate launch --gradient_accumulation_steps` overrides the plain argument.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=args.gradient_accumulation_steps),
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=f"{args.output_dir}/logs"),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise ValueError(f"fp16 cannot be trained on {accelerator.device.type}; choose --mixed_precision bf16 or no.")
    return accelerator
