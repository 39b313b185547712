"""Model cards of pipelines that voxdiff trained."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from voxdiff import __version__
from voxdiff.volumes import VolumeProcessor

_SLICES = ("sagittal", "coronal", "axial")
"""Slice axis -> what its slices are called."""


def training_card(
    pipeline: Any, run_config: Mapping[str, Any], *, data: str, global_batch_size: int, final_loss: float | None
) -> str:
    """The README.md of a pipeline folder that a training script wrote.

    Args:
        pipeline: The trained pipeline.
        run_config: What the script was asked for: ``data``, ``model`` and ``training`` arguments and its ``command``.
        data: What it was trained on, a phrase.
        global_batch_size: Samples per optimiser step.
        final_loss: Loss in the last line of the log.
    """
    args, base = run_config["training"], run_config["model"]["pretrained_model_name_or_path"]
    takes_volumes = bool(getattr(pipeline, "condition_names", None)) or _takes_masks(pipeline)
    card = ModelCardData(
        license="unknown",
        library_name="diffusers",
        pipeline_tag="image-to-image" if takes_volumes else "unconditional-image-generation",
        base_model=base if base and not os.path.exists(base) and base.count("/") == 1 else None,
        tags=["voxdiff", "medical", "3d", "image-synthesis"],
    )
    parameters = sum(parameter.numel() for parameter in pipeline.unet.parameters()) / 1e6
    average = f"exponential average of the weights, decay {args['ema_decay']}" if args["use_ema"] else "last weights"
    return f"""---
{card.to_yaml()}
---

# {Path(args["output_dir"]).resolve().name}

`{type(pipeline).__name__}` trained with voxdiff {__version__}.

{_contents(pipeline)}
- Training data: {data}
- {f"Started from `{Path(base).name}`" if base else "Trained from nothing"}: {args["max_train_steps"]} steps of \
{global_batch_size} volumes, AdamW with learning rate {args["learning_rate"]:g} ({args["lr_scheduler"]}), seed \
{args["seed"]}; {parameters:.2f} M parameters, {average}
- Final training loss: {"unknown" if final_loss is None else f"{final_loss:.5f}"} (`training_log.jsonl`)

```
{_without_folders(run_config["command"])}
```

## Use

```python
import voxdiff

pipe = voxdiff.{type(pipeline).__name__}.from_pretrained("path/to/this/folder")
image = pipe({_inputs(pipeline)}num_inference_steps=50).volumes[0]
```

Plain diffusers loads it too, with `custom_pipeline="pipeline", trust_remote_code=True` (voxdiff must be installed).

## Licence

Not stated yet: choose one that the licences of the training data{" and of the base model" if base else ""} allow,
and write it here and into `license:` above before you share this folder.

## Intended use and limits

Research on image synthesis. Not for clinical use, and not for diagnosis, treatment or any decision about a person. The
volumes are synthetic: findings in them are nobody's. A generative model can repeat parts of its training images.
Nothing was measured here beyond the training loss.
"""


def _contents(pipeline: Any) -> str:
    """What comes out and what goes in: a line each."""
    if hasattr(pipeline, "output_names"):
        takes = f"; takes, in this order: {_code(pipeline.condition_names)}" if pipeline.condition_names else ""
        return f"- Makes: {_code(pipeline.output_names)}{takes}\n- {_grid(pipeline.volume_processor)}"
    if _takes_masks(pipeline):
        return _contents_of_masks(pipeline)
    if _takes_slices(pipeline):
        return _contents_of_slices(pipeline)
    classes = sorted(pipeline.volume_classes.values(), key=lambda entry: entry.id)
    lines = [f"- Class {entry.id}, `{entry.name}`: {_grid(entry.processor)}" for entry in classes]
    lines = lines or [f"- {_grid(pipeline.volume_processor)}"]
    if pipeline.scalar_names:
        known = pipeline.unet.config["scalar_conditions"]
        shown = [f"`{name}` ({known[name]['mean']:.4g} ± {known[name]['std']:.4g})" for name in pipeline.scalar_names]
        lines.append(f"- Scalar conditions, with mean ± standard deviation in training: {', '.join(shown)}")
        lines.append(f"- Scalars: {'any of them may be left out' if pipeline.optional_scalars else 'give all of them'}")
    if pipeline.null_condition:
        lines.append(
            "- Trained without conditions too: takes `guidance_scale` above 1, and calls without any condition"
        )
    return "\n".join(lines)


def _takes_masks(pipeline: Any) -> bool:
    return hasattr(pipeline, "mask_encoder")


def _contents_of_masks(pipeline: Any) -> str:
    """The informed-slice pipeline: its grid, its masks, and where its informed slices come from."""
    values = ", ".join(f"{label} ({value:g})" for label, value in pipeline.mask_encoder.values.items())
    slices = "given" if pipeline.slice_unet is None else "given or generated"
    return "\n".join(
        [
            f"- {_grid(pipeline.volume_processor)}",
            f"- Takes a mask; labels, with what the networks see for them: {values}",
            f"- Informed slice: {slices if pipeline.takes_informed_slice else 'none, the baseline Make-A-Volume'}",
            f"- Windows of {pipeline.unet.config['window']} axial slices",
        ]
    )


def _takes_slices(pipeline: Any) -> bool:
    return "slice_axis" in pipeline.config


def _contents_of_slices(pipeline: Any) -> str:
    """The slice-conditioned pipeline: its grid, its slices, and the order that it makes them in."""
    config, unet = pipeline.config, pipeline.unet.config
    return "\n".join(
        [
            f"- {_grid(pipeline.volume_processor)}",
            f"- Makes {_SLICES[config['slice_axis']]} slices from any that are known, or from none: `known_slices`, `volume`",
            f"- Scheme: {config['scheme']}, {config['stage_size']} slices a stage from up to {config['context_size']}, "
            f"at most {config['max_slices']} in all; positions: {unet['position_embedding']}",
        ]
    )


def _inputs(pipeline: Any) -> str:
    """Conditions in the example of a call."""
    if _takes_masks(pipeline):
        informed = pipeline.takes_informed_slice
        return '"mask.nii.gz", informed_slice="other_patient.nii.gz", ' if informed else '"mask.nii.gz", '
    conditions = getattr(pipeline, "condition_names", [])
    if conditions:
        return "{" + ", ".join(f'"{name}": "{name}.nii.gz"' for name in conditions) + "}, "
    classes = list(getattr(pipeline, "volume_classes", {}).values())
    scalars = getattr(pipeline, "scalar_names", [])
    if classes and classes[0].scalars is not None:
        classes.sort(key=lambda entry: -len(entry.scalars))
        scalars = [name for name in scalars if name in classes[0].scalars]
    arguments = [f'"{classes[0].name}"'] if classes else []
    if scalars:
        known = pipeline.unet.config["scalar_conditions"]
        values = ", ".join(f'"{name}": {known[name]["mean"]:.4g}' for name in scalars)
        arguments.append(f"scalars={{{values}}}")
    return "".join(f"{argument}, " for argument in arguments)


def _grid(processor: VolumeProcessor) -> str:
    return (
        f"Grid {_times(processor.size)}, {_times(processor.spacing)} mm, axes {processor.orientation}; values come back "
        f"in {processor.unit}"
    )


def _without_folders(command: str) -> str:
    """A command with its absolute paths cut to their last part: where data lie is nobody's business."""
    return shlex.join(Path(word).name if os.path.isabs(word) else word for word in shlex.split(command))


def _code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _times(values: Any) -> str:
    return " x ".join(f"{value:g}" for value in values) if values else "as given"
