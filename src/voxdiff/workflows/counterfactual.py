"""What would this patient look like with another mask? Two volumes that differ in nothing but the mask (GEM-3D)."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from voxdiff.metrics.nnunet import require_same_grid
from voxdiff.volume_files import intensity_unit, load_volume, make_image, three_plane_png
from voxdiff.volume_grids import grid_map, model_grid, regrid
from voxdiff.volumes import VolumeProcessor, atomic_path
from voxdiff.workflows.enhance import require_call_arguments
from voxdiff.workflows.enhancement_manifest import lasting_provenance, model_hash, remove_unfinished
from voxdiff.workflows.masked_cases import MaskedCase, Volume, volume_hash

RECORD_FILE = "counterfactual.json"
_IMAGES = ("original", "edited", "difference", "edited_mask")


@dataclass(frozen=True)
class Counterfactual:
    """Two volumes of one subject, and where they differ.

    Attributes:
        original: With the subject's mask.
        edited: With the edited mask, the same noise and the same informed slice.
        difference: Edited less original, in their unit.
        slice_index: Where the informed slice lies, along the last axis of the model's grid.
        inside: Mean absolute difference where the masks differ.
        outside: The same in the rest of what the subject's mask labels; 0 if there is none.
    """

    original: nib.Nifti1Image
    edited: nib.Nifti1Image
    difference: nib.Nifti1Image
    slice_index: int
    inside: float
    outside: float


def counterfactual(
    pipe: Any,
    case: MaskedCase,
    edited_mask: Volume,
    output_dir: str | Path,
    *,
    slice_index: int | None = None,
    margin: int = 2,
    seed: int = 0,
    num_inference_steps: int = 50,
    **call_arguments: Any,
) -> Counterfactual:
    """Make the subject with its own and with the edited mask, and write both beside their difference.

    Both volumes start from the same noise and have the subject's own informed slice, where the edit is not.

    Args:
        pipe: An `InformedSlicePipeline`.
        case: The subject, with its image.
        edited_mask: On the grid of the case's mask, and of its tissue map if it has one.
        output_dir: For ``original.nii.gz``, ``edited.nii.gz``, ``difference.nii.gz``, ``edited_mask.nii.gz``,
            ``difference.png`` and ``counterfactual.json``.
        slice_index: Of the informed slice, along the last axis of the model's grid; None takes the slice with the
            largest labelled area of those at least `margin` slices from the edit.
        margin: Slices between the edit and the informed slice.
        seed: Of the noise.
        num_inference_steps: Of every window.
        call_arguments: As :func:`voxdiff.workflows.enhance.enhance` takes them.

    Raises:
        ValueError: The case has no image, the grids differ, the masks do not, the edit leaves no slice, or the folder
            holds another result or a volume that was given.
    """
    if case.image is None:
        raise ValueError(f"{case.name} has no image to take its informed slice from; give one.")
    require_call_arguments(call_arguments)
    _require_other_files(Path(output_dir), (case.image, case.mask, case.tissue, edited_mask))
    masks = [case.load_mask(), replace(case, mask=edited_mask, name=f"{case.name} (edited)").load_mask()]
    require_same_grid(masks[1], masks[0], "the edited mask", case.name)
    require_same_grid(load_volume(case.image), masks[0], "the image", case.name)
    changed = np.asarray(masks[0].dataobj) != np.asarray(masks[1].dataobj)
    if not changed.any():
        raise ValueError(f"The edited mask of {case.name} is its own mask; edit it first.")
    chosen = _choose_slice(masks, pipe.volume_processor, margin) if slice_index is None else slice_index
    call_arguments |= {"num_inference_steps": num_inference_steps, "start_position": chosen}
    settings = {
        "case": case.content_hash(),
        "edited_mask": volume_hash(masks[1]),
        "model": model_hash(pipe),
        "seed": seed,
        **call_arguments,
    }
    folder = Path(output_dir)
    _require_same_settings(folder, settings)
    output = pipe(
        masks,
        informed_slice=[case.image] * 2,
        generator=[torch.Generator().manual_seed(seed) for _ in masks],
        **call_arguments,
    )
    anatomy = np.asarray(masks[0].dataobj) != pipe.mask_encoder.background
    result = _compare(output.volumes[0], output.volumes[1], changed, anatomy & ~changed, chosen)
    record = {
        "settings": settings,
        "subject": case.subject,
        "mean_absolute_difference": {"inside the edit": result.inside, "in the rest of the mask": result.outside},
        "provenance": list(map(lasting_provenance, output.provenance)),
    }
    _write(folder, result, masks[1], changed, record)
    return result


def _choose_slice(masks: list[nib.Nifti1Image], processor: VolumeProcessor, margin: int) -> int:
    """The slice of the model's grid with the largest labelled area among those that the edit is not near."""
    before, after = (_on_model_grid(mask, processor) for mask in masks)
    edited = np.flatnonzero((before != after).any(axis=(0, 1)))
    places = np.arange(before.shape[2])
    away = np.abs(places[:, None] - edited).min(axis=1, initial=len(places)) >= margin
    if not away.any():
        raise ValueError(
            f"The edit leaves no slice that is {margin} slices away from it; give slice_index, or a smaller margin."
        )
    area = np.where(away, (before > 0).sum(axis=(0, 1)), -1)
    return int(area.argmax())


def _on_model_grid(mask: nib.Nifti1Image, processor: VolumeProcessor) -> np.ndarray:
    grid, shape = model_grid(
        mask.affine, mask.shape, processor.orientation, processor.spacing, processor.size, processor.padding
    )
    labels = torch.from_numpy(np.asarray(mask.dataobj, dtype=np.float32))[None]
    return regrid(labels, grid_map(mask.affine, grid), shape, fill=0, nearest=True)[0].numpy()


def _compare(
    original: nib.Nifti1Image, edited: nib.Nifti1Image, changed: np.ndarray, kept: np.ndarray, slice_index: int
) -> Counterfactual:
    difference = np.asarray(edited.dataobj, dtype=np.float32) - np.asarray(original.dataobj, dtype=np.float32)
    return Counterfactual(
        original=original,
        edited=edited,
        difference=make_image(difference, original.affine, unit=intensity_unit(original)),
        slice_index=slice_index,
        inside=float(np.abs(difference[changed]).mean()),
        outside=float(np.abs(difference[kept]).mean()) if kept.any() else 0.0,
    )


def _require_other_files(folder: Path, given: Sequence[Any]) -> None:
    """Raise ValueError if a volume that is read would be written over."""
    written = {(folder / f"{name}.nii.gz").resolve() for name in _IMAGES}
    for volume in given:
        if isinstance(volume, str | Path) and Path(volume).resolve() in written:
            raise ValueError(f"The result would be written over {volume}; give another folder.")


def _require_same_settings(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / RECORD_FILE
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["settings"] != json.loads(json.dumps(settings)):
        raise ValueError(f"{folder} holds another counterfactual; give another folder.")


def _write(
    folder: Path, result: Counterfactual, edited_mask: nib.Nifti1Image, changed: np.ndarray, record: dict[str, Any]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    images = zip(_IMAGES, (result.original, result.edited, result.difference, edited_mask), strict=True)
    with ExitStack() as stack:  # what is entered first appears last
        path = stack.enter_context(atomic_path(folder / RECORD_FILE))
        path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        for name, image in images:
            temporary = stack.enter_context(atomic_path(folder / f"{name}.nii.gz"))
            nib.save(nib.Nifti1Image(image.dataobj, image.affine, image.header), temporary)
        three_plane_png(_picture(result, changed), folder / "difference.png", window=(0, 1))


def _picture(result: Counterfactual, changed: np.ndarray) -> nib.Nifti1Image:
    """Original, edited, difference (grey is none) and edit as channels in [0, 1], the middle of the edit in the middle."""
    original, edited, difference = (
        np.asarray(image.dataobj, dtype=np.float32) for image in (result.original, result.edited, result.difference)
    )
    both = np.stack([original, edited])
    low, scale = both.min(), max(float(np.ptp(both)), float(np.finfo(np.float32).tiny))
    rows = ((original - low) / scale, (edited - low) / scale, 0.5 + difference / (2 * scale), changed)
    centre = [int(place) for place in np.argwhere(changed).mean(axis=0).round()]
    padding: list[tuple[int, int]] = []
    for middle, count in zip(centre, changed.shape, strict=True):
        half = max(middle, count - 1 - middle)
        padding.append((half - middle, half - (count - 1 - middle)))
    stacked = np.stack([np.pad(row.astype(np.float32), padding) for row in rows], axis=-1)
    return make_image(stacked, result.original.affine)
