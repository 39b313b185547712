"""Re-sample a data set: every mask is kept, and gets images with the appearance of other subjects (GEM-3D, IC)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from voxdiff.workflows.enhancement_filter import VolumeFilter
from voxdiff.workflows.enhancement_manifest import ResampledFolder, model_hash
from voxdiff.workflows.enhancement_plan import Informed, PlannedVolume, plan_enhancement
from voxdiff.workflows.masked_cases import MaskedCase, cases_hash
from voxdiff.workflows.nnunet_dataset import NnUNetDataset, export_resampled
from voxdiff.workflows.resampling_checks import check_run
from voxdiff.workflows.resampling_run import make_volumes

_CALL_ARGUMENTS = (
    *("start_position", "num_inference_steps", "propagation", "known_slice_noise", "window", "overlap", "eta"),
    *("unit", "background"),
)


@dataclass(frozen=True)
class ResamplingResult:
    """What a run made.

    Attributes:
        folder: With the volumes, their masks and records, ``metadata.csv`` and ``manifest.json``.
        images: Of the accepted volumes.
        rejected: Name → reasons.
    """

    folder: Path
    images: tuple[Path, ...]
    rejected: Mapping[str, tuple[str, ...]]


def enhance(
    pipe: Any,
    cases: Sequence[MaskedCase],
    output_dir: str | Path,
    *,
    variants: int = 1,
    augment_masks: bool = False,
    augmentation: Mapping[str, Any] | None = None,
    informed: Informed = "cross",
    include_self: bool = False,
    seed: int = 0,
    start_position: float | int | None = None,
    filters: Sequence[VolumeFilter] = (),
    nnunet: NnUNetDataset | None = None,
    num_inference_steps: int = 50,
    batch_size: int = 1,
    on_volume: Callable[[], None] | None = None,
    **call_arguments: Any,
) -> ResamplingResult:
    """Make `variants` volumes for each mask, each with the informed slice of another subject.

    The choice of the slice, the noise and the change of the mask are pure functions of `seed`, the case and the
    variant. A run that was killed is continued by the same call and gives the files of an unbroken run.

    Args:
        pipe: An `InformedSlicePipeline`.
        cases: The data set, such as :func:`voxdiff.workflows.masked_cases.read_cases` finds.
        output_dir: For each volume ``<case>-v<variant>_image.nii.gz``, ``_mask.nii.gz`` and ``.json``; and
            ``metadata.csv`` and ``manifest.json``.
        variants: Volumes a mask.
        augment_masks: Change each mask at random first, see :func:`voxdiff.data.mask_augmentation.augment_mask`.
        augmentation: Its options, such as ``{"kind": "organs"}``, which is the default of models in HU.
        informed: ``"cross"``: the slice of another subject, at the start position. ``"generated"``: the pipeline's own
            slice model makes it. ``"own"``: the mask's own image. ``"none"``: for models without informed slice.
        include_self: Let ``"cross"`` draw the mask's own subject too.
        seed: Of everything.
        start_position: Where the informed slice lies, from 0 to 1 or a slice index; None is the pipeline's default.
        filters: A volume that one of them rejects is listed with the reason, and not written.
        nnunet: Also export the accepted volumes, if there are any, in nnU-Net v2's raw format.
        num_inference_steps: Of every window.
        batch_size: Volumes a call. It changes results by rounding, so it is one of the settings of the folder.
        on_volume: Called after each volume.
        call_arguments: ``propagation``, ``known_slice_noise``, ``window``, ``overlap``, ``eta``, ``unit`` or
            ``background`` of the pipeline.

    Raises:
        ValueError: There is no other subject, a case or an option cannot be used, or the folder was begun with other
            settings.
    """
    if augmentation and not augment_masks:
        raise ValueError("Options of the mask augmentation were given without augment_masks=True; add it.")
    _require_matching(pipe, informed)
    planned = plan_enhancement(
        cases, variants=variants, informed=informed, include_self=include_self, augment_masks=augment_masks, seed=seed
    )
    if augment_masks:
        augmentation = {"kind": "organs" if pipe.volume_processor.unit == "HU" else "brain", **(augmentation or {})}
    call_arguments |= {"num_inference_steps": num_inference_steps, "start_position": start_position}
    settings = {
        "command": "enhance",
        "variants": variants,
        "informed": informed,
        "include_self": include_self,
        "augment_masks": augment_masks,
        "seed": seed,
    }
    return run_resampling(
        pipe,
        cases,
        planned,
        output_dir,
        settings,
        informed_slice=_image_of_donor,
        call_arguments=call_arguments,
        augmentation=augmentation or {},
        batch_size=batch_size,
        filters=filters,
        nnunet=nnunet,
        on_volume=on_volume,
    )


def run_resampling(
    pipe: Any,
    cases: Sequence[MaskedCase],
    planned: Sequence[PlannedVolume],
    output_dir: str | Path,
    settings: Mapping[str, Any],
    *,
    informed_slice: Callable[[PlannedVolume], Any],
    call_arguments: Mapping[str, Any],
    slice_latents: torch.Tensor | None = None,
    augmentation: Mapping[str, Any],
    batch_size: int,
    filters: Sequence[VolumeFilter],
    nnunet: NnUNetDataset | None,
    on_volume: Callable[[], None] | None,
) -> ResamplingResult:
    """Make planned volumes in a folder that knows its settings; what :func:`enhance` and `harmonize` share."""
    start = call_arguments["start_position"]
    if isinstance(start, float) and not 0 <= start <= 1:
        raise ValueError(f"start_position is {start}; give a number from 0.0 to 1.0, or the index of a slice.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give a whole number of at least 1.")
    require_call_arguments(call_arguments)
    everything = {
        **settings,
        **call_arguments,
        "model": model_hash(pipe),
        "device": pipe.device.type,
        "cases": cases_hash(cases),
        "batch_size": batch_size,
        "augmentation": dict(augmentation),
        "filters": [judge.settings() for judge in filters],
    }
    check_run(pipe, planned, informed_slice=informed_slice, call_arguments=call_arguments, nnunet=nnunet)
    folder = ResampledFolder(output_dir, everything, planned)
    make_volumes(
        pipe,
        folder,
        informed_slice=informed_slice,
        call_arguments=call_arguments,
        slice_latents=slice_latents,
        augmentation=augmentation,
        batch_size=batch_size,
        filters=filters,
        on_volume=on_volume,
    )
    records = folder.finish()
    accepted = [item for item, record in zip(planned, records, strict=True) if not record["rejected"]]
    if nnunet is not None and accepted:
        export_resampled({item.name: folder.volume_paths(item) for item in accepted}, nnunet)
    return ResamplingResult(
        folder=folder.folder,
        images=tuple(folder.volume_paths(item)[0] for item in accepted),
        rejected={
            record["name"]: tuple(check["reason"] for check in record["checks"] if check["rejected"])
            for record in records
            if record["rejected"]
        },
    )


def require_call_arguments(given: Mapping[str, Any]) -> None:
    """Raise ValueError if arguments of the pipeline are not among those that a data set tool leaves to its caller."""
    others = sorted(set(given) - set(_CALL_ARGUMENTS))
    if others:
        raise ValueError(
            f"The argument {others[0]} of the pipeline is not for data set tools; allowed are {', '.join(_CALL_ARGUMENTS)}."
        )


def _image_of_donor(item: PlannedVolume) -> Any:
    return None if item.donor is None else item.donor.image


def _require_matching(pipe: Any, informed: Informed) -> None:
    if (informed == "none") == pipe.takes_informed_slice:
        raise ValueError(
            f"informed is {informed!r} and this model takes {'an' if pipe.takes_informed_slice else 'no'} informed slice; "
            "'none' belongs to models without, such as Make-A-Volume, and to no others."
        )
