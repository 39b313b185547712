"""The loop of the data set tools: masks go through the pipeline, results through the filters, and into the folder."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch

from voxdiff.data.mask_augmentation import augment_mask
from voxdiff.workflows.enhancement_filter import VolumeFilter
from voxdiff.workflows.enhancement_manifest import ResampledFolder
from voxdiff.workflows.enhancement_plan import PlannedVolume
from voxdiff.workflows.masked_cases import label_image


def make_volumes(
    pipe: Any,
    folder: ResampledFolder,
    *,
    informed_slice: Callable[[PlannedVolume], Any],
    call_arguments: Mapping[str, Any],
    slice_latents: torch.Tensor | None = None,
    augmentation: Mapping[str, Any],
    batch_size: int = 1,
    filters: Sequence[VolumeFilter] = (),
    on_volume: Callable[[], None] | None = None,
) -> None:
    """Make the planned volumes that the folder does not hold yet.

    The latents of a mask are encoded once for all of its variants. A batch of which a part is missing is made whole
    again, because the rounding of a batch depends on its size.

    Args:
        pipe: An `InformedSlicePipeline`.
        folder: Where they belong, with the plan.
        informed_slice: What the pipeline is given as a volume's informed slice.
        call_arguments: Of every call of the pipeline.
        slice_latents: Of the informed slice of all volumes, instead of `informed_slice`.
        augmentation: Options of :func:`augment_mask` for volumes whose mask is changed.
        batch_size: Volumes a call; those of one call have masks of one shape and direction.
        filters: All of them judge every volume.
        on_volume: Called after each planned volume, made now or before.

    Raises:
        ValueError: A mask, an image or an option that the pipeline cannot use.
    """
    latents: dict[str, torch.Tensor] = {}
    for batch in _batches(folder.planned, batch_size):
        if not all(folder.is_done(item) for item in batch):
            try:
                masks = [_mask_of(item, augmentation) for item in batch]
                encoded = [_encode(pipe, item, mask, latents) for item, mask in zip(batch, masks, strict=True)]
                slices = [informed_slice(item) for item in batch]
                made_already = {} if slice_latents is None else {"informed_slice_latents": slice_latents}
                output = pipe(
                    masks,
                    informed_slice=None if slices[0] is None else slices,
                    mask_latents=torch.cat(encoded),
                    generator=[torch.Generator().manual_seed(item.seed) for item in batch],
                    **made_already,
                    **call_arguments,
                )
            except ValueError as error:
                raise ValueError(f"{', '.join(item.name for item in batch)}: {error}") from error
            for item, *made in zip(batch, output.volumes, masks, output.provenance, strict=True):
                if not folder.is_done(item):
                    _judge_and_write(folder, item, filters, *made)
        latents = {item.case.name: latents[item.case.name] for item in batch if item.case.name in latents}
        if on_volume is not None:
            for _ in batch:
                on_volume()


def _judge_and_write(
    folder: ResampledFolder,
    item: PlannedVolume,
    filters: Sequence[VolumeFilter],
    image: nib.Nifti1Image,
    mask: nib.Nifti1Image,
    provenance: dict[str, Any],
) -> None:
    verdicts = [judge(image, mask) for judge in filters]
    record = {"checks": [verdict.to_dict() for verdict in verdicts], "provenance": provenance}
    folder.write(item, image, mask, record, rejected=any(verdict.rejected for verdict in verdicts))


def _batches(planned: Sequence[PlannedVolume], batch_size: int) -> Iterator[list[PlannedVolume]]:
    """Consecutive volumes whose masks share a grid."""
    for _, group in itertools.groupby(planned, key=lambda item: item.case.mask_grid()):
        alike = list(group)
        yield from (alike[first : first + batch_size] for first in range(0, len(alike), batch_size))


def _encode(pipe: Any, item: PlannedVolume, mask: nib.Nifti1Image, known: dict[str, torch.Tensor]) -> torch.Tensor:
    """Latents (1, channels, x, y, z) of a mask; those of an unchanged mask are kept in `known`."""
    if item.mask_seed is not None:
        return pipe.encode_masks(mask)
    if item.case.name not in known:
        known[item.case.name] = pipe.encode_masks(mask)
    return known[item.case.name]


def _mask_of(item: PlannedVolume, augmentation: Mapping[str, Any]) -> nib.Nifti1Image:
    """The mask, changed where the plan says so, on its own grid."""
    mask = item.case.load_mask()
    if item.mask_seed is None:
        return mask
    canonical = nib.as_closest_canonical(mask)  # its x runs left-right, which a mirror image needs
    labels = augment_mask(
        np.asarray(canonical.dataobj),
        generator=np.random.default_rng(item.mask_seed),
        spacing=[float(edge) for edge in canonical.header.get_zooms()],
        **augmentation,
    )
    orientations = [nib.orientations.io_orientation(affine) for affine in (canonical.affine, mask.affine)]
    values = nib.orientations.apply_orientation(labels, nib.orientations.ornt_transform(*orientations))
    return label_image(values, mask)
