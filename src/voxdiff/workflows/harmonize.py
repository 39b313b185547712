"""One appearance for a whole data set: every mask with the same informed slice (GEM-3D's de-enhancement)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from voxdiff.pipelines.slice_codec import slice_compression
from voxdiff.workflows.enhance import ResamplingResult, run_resampling
from voxdiff.workflows.enhancement_filter import VolumeFilter
from voxdiff.workflows.enhancement_plan import draw, plan_enhancement
from voxdiff.workflows.masked_cases import MaskedCase, volume_hash
from voxdiff.workflows.nnunet_dataset import NnUNetDataset

GENERATED = "generated"


def harmonize(
    pipe: Any,
    cases: Sequence[MaskedCase],
    output_dir: str | Path,
    *,
    informed_slice: Any,
    seed: int = 0,
    start_position: float | int | None = None,
    filters: Sequence[VolumeFilter] = (),
    nnunet: NnUNetDataset | None = None,
    num_inference_steps: int = 50,
    batch_size: int = 1,
    on_volume: Callable[[], None] | None = None,
    **call_arguments: Any,
) -> ResamplingResult:
    """Make one volume for each mask, all with one informed slice.

    The anatomy that the masks do not fix is the model's: this is a new image of each mask in one appearance, not a
    correction of each image.

    Args:
        pipe: An `InformedSlicePipeline`.
        cases: The masks; images are not read, unless a filter does.
        output_dir: As :func:`voxdiff.workflows.enhance.enhance` fills it, and continued alike.
        informed_slice: What the pipeline takes as such: a path, image, array or tensor of a slice or a volume, or a
            volume and the index of the slice. Or ``"generated"``: the pipeline's slice model makes one from `seed`.
        seed: Of the noise of every case.
        start_position: Where the informed slice lies, from 0 to 1 or a slice index; None is the pipeline's default.
        filters: A volume that one of them rejects is listed with the reason, and not written.
        nnunet: Also export the accepted volumes in nnU-Net v2's raw format.
        num_inference_steps: Of every window.
        batch_size: Volumes a call. It changes results by rounding, so it is one of the settings of the folder.
        on_volume: Called after each volume.
        call_arguments: As :func:`voxdiff.workflows.enhance.enhance` takes them.

    Raises:
        ValueError: There is no informed slice, a case or an option cannot be used, or the folder was begun with other
            settings.
    """
    if informed_slice is None:
        raise ValueError("There is no informed slice to harmonize with; give a path, an array, or (volume, index).")
    if isinstance(informed_slice, list):
        raise ValueError("informed_slice is a list, and all masks get the same one; give one slice.")
    planned = plan_enhancement(cases, informed="generated", seed=seed)
    settings = {"command": "harmonize", "seed": seed, "informed_slice": describe_slice(informed_slice)}
    latents = None
    if is_generated(informed_slice):
        sampling = {"num_inference_steps": num_inference_steps, "eta": call_arguments.get("eta", 0.0)}
        latents = _generate_slice(pipe, planned[0].case, start_position, seed, **sampling)
    return run_resampling(
        pipe,
        cases,
        planned,
        output_dir,
        settings,
        informed_slice=lambda item: None if latents is not None else informed_slice,
        slice_latents=latents,
        call_arguments={
            **call_arguments,
            "num_inference_steps": num_inference_steps,
            "start_position": start_position,
        },
        augmentation={},
        batch_size=batch_size,
        filters=filters,
        nnunet=nnunet,
        on_volume=on_volume,
    )


def describe_slice(informed_slice: Any) -> dict[str, Any]:
    """What a manifest says of an informed slice: name of its file, SHA-256 of its content, index of the slice."""
    if is_generated(informed_slice):
        return {"generated": True}
    volume, index = informed_slice if isinstance(informed_slice, tuple) else (informed_slice, None)
    return {
        "file": Path(volume).name if isinstance(volume, str | Path) else None,
        "sha256": volume_hash(volume),
        "index": None if index is None else int(index),
    }


def is_generated(informed_slice: Any) -> bool:
    """Whether the slice is not given, but to be made."""
    return isinstance(informed_slice, str) and informed_slice == GENERATED


def _generate_slice(
    pipe: Any, case: MaskedCase, start_position: float | int | None, seed: int, **sampling: Any
) -> torch.Tensor:
    """Latents (1, channels, x, y) of one slice, as large as those of a case's mask."""
    if isinstance(start_position, int):
        raise ValueError(
            f"start_position is slice {start_position}, and masks of any depth share the generated slice; give a position "
            "from 0.0 to 1.0."
        )
    sides = pipe.encode_masks(case.load_mask()).shape[2:4]
    return pipe.generate_slice(
        0.5 if start_position is None else start_position,
        [side * slice_compression(pipe.vae) for side in sides],
        **sampling,
        generator=torch.Generator().manual_seed(draw(seed, "informed slice")),
    )
