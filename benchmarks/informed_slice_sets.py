"""The sets of volumes that the benchmarks of informed slices measure: which they are, and how they are made and read."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxdiff import InformedSlicePipeline
from voxdiff.pipelines.slice_windows import SliceWindow
from voxdiff.schedulers import swap_scheduler
from voxdiff.training.slice_sources import cohort_slice_source
from voxdiff.volume_files import load_volume
from voxdiff.volumes import VolumeProcessor
from voxdiff.workflows.enhance import enhance
from voxdiff.workflows.enhancement_manifest import MANIFEST_FILE
from voxdiff.workflows.enhancement_plan import Informed
from voxdiff.workflows.masked_cases import MaskedCase

GEM, BASELINE = "gem", "baseline"
BASIC_SETS: dict[str, tuple[str, Informed]] = {
    "own slice": (GEM, "own"),
    "baseline": (BASELINE, "none"),
    "IC": (GEM, "cross"),
    "IG": (GEM, "generated"),
}
AUGMENTED = " + MA"


@dataclass(frozen=True, kw_only=True)
class VolumeSet:
    """Volumes that one model makes of the first masks, in one way.

    Attributes:
        name: In tables.
        model: :data:`GEM` or :data:`BASELINE` (Make-A-Volume).
        informed: Where the informed slice comes from.
        augmented: Whether the masks are changed first.
        steps: Solver steps.
        noise: Rule of the known slices; the baseline has none.
        eta: Noise of DDIM's steps, 1 as published; 0 is the model's own scheduler.
        volumes: How many.
    """

    name: str
    model: str
    informed: Informed
    augmented: bool = False
    steps: int
    noise: str = "clean"
    eta: float = 0.0
    volumes: int

    @property
    def folder(self) -> str:
        """Name of the folder that keeps it."""
        augmented = "-augmented" if self.augmented else ""
        eta = f"-eta-{self.eta:g}" if self.eta else ""
        return f"{self.model}-{self.informed}{augmented}-{self.noise}{eta}-{self.steps}-{self.volumes}"


def load_models(gem: Path, baseline: Path | None, dtype: str) -> dict[str, InformedSlicePipeline]:
    """The pipelines by name, ready to sample in a precision such as ``"bfloat16"``."""
    folders = {GEM: gem} | ({BASELINE: baseline} if baseline else {})
    models = {name: InformedSlicePipeline.from_pretrained(folder) for name, folder in folders.items()}
    for pipe in models.values():
        pipe.to(getattr(torch, dtype))
        pipe.set_progress_bar_config(disable=True)
    return models


def grid_sets(steps: int, volumes: int, *, generator: bool) -> list[VolumeSet]:
    """The paper's grid (its tables of test and train samples); without generator there is no IG."""
    chosen = {name: kinds for name, kinds in BASIC_SETS.items() if generator or kinds[1] != "generated"}
    return [
        VolumeSet(
            name=name + AUGMENTED * augmented,
            model=model,
            informed=informed,
            augmented=augmented,
            steps=steps,
            volumes=volumes,
        )
        for augmented in (False, True)
        for name, (model, informed) in chosen.items()
        if not (augmented and informed == "own")
    ]


def sweep_sets(
    steps: Sequence[int], noises: Sequence[str], ancestral: Sequence[int], *, default: int, volumes: int
) -> list[VolumeSet]:
    """Volumes with their own slice, by steps and sampler (known slices clean) and by the rule of the known slices."""
    chosen = dict.fromkeys([(count, "clean", 0.0) for count in steps] + [(default, noise, 0.0) for noise in noises])
    return [
        VolumeSet(
            name=f"own slice, {noise}, {count} {'DDIM ' * bool(eta)}steps",
            model=GEM,
            informed="own",
            steps=count,
            noise=noise,
            eta=eta,
            volumes=volumes,
        )
        for count, noise, eta in [*chosen, *((count, "clean", 1.0) for count in ancestral)]
    ]


def cohort_cases(cohort: str, split: str, count: int, cache: Path, *, size: int = 64) -> list[MaskedCase]:
    """Subjects of a split with their masks, as the models were trained on them."""
    source = cohort_slice_source(cohort, (size,) * 3, cache, num_subjects=count, split=split)
    columns = ("image", "mask")
    volumes = [source.dataset.volumes(index, columns) for index in range(count)]
    return [
        MaskedCase(subject, *(found[name] for name in columns))
        for subject, found in zip(source.subject_ids, volumes, strict=True)
    ]


def make_set(
    wanted: VolumeSet,
    models: Mapping[str, InformedSlicePipeline],
    cases: Sequence[MaskedCase],
    folder: Path,
    *,
    batch_size: int = 4,
    on_volume: Callable[[], None] | None = None,
) -> list[dict[str, Any]]:
    """Make what is missing of a set, each volume of the mask of one case.

    Returns:
        For each volume, by the name of the case: ``case``, ``image`` and ``mask`` (paths), ``donor`` (the case of the
        informed slice, or None).

    Raises:
        ValueError: If there are too few cases, or the folder holds a set of other models or cases.
    """
    chosen = list(cases[: wanted.volumes])
    if len(chosen) < wanted.volumes:
        raise ValueError(f"The set {wanted.name!r} needs {wanted.volumes} cases, there are {len(chosen)}; give more.")
    pipe = models[wanted.model]
    if wanted.eta:
        pipe = copy.copy(pipe)
        pipe.scheduler = swap_scheduler(pipe.scheduler, "ddim")
    has_organs = pipe.volume_processor.unit == "HU"
    enhance(
        pipe,
        chosen,
        folder / wanted.folder,
        informed=wanted.informed,
        augment_masks=wanted.augmented,
        augmentation={"kind": "organs"} if wanted.augmented and has_organs else None,
        num_inference_steps=wanted.steps,
        batch_size=batch_size,
        on_volume=on_volume,
        **({} if wanted.model == BASELINE else {"known_slice_noise": wanted.noise}),
        **({"eta": wanted.eta} if wanted.eta else {}),
    )
    return read_set(folder / wanted.folder)


def read_set(folder: Path) -> list[dict[str, Any]]:
    """Where the volumes of a finished set are, by the name of the case; see :func:`make_set`."""
    manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    return [
        {
            "case": volume["case"],
            "image": folder / f"{volume['name']}_image.nii.gz",
            "mask": folder / f"{volume['name']}_mask.nii.gz",
            "donor": volume["slice_from_case"],
        }
        for volume in manifest["volumes"]
    ]


def unit_volume(image: Any, processor: VolumeProcessor) -> torch.Tensor:
    """A volume ``(1, x, y, z)`` in [0, 1], prepared as for training."""
    tensor, _ = processor.preprocess(image, unit="HU" if processor.unit == "HU" else None)
    low, high = processor.value_range
    return ((tensor[0] - low) / (high - low)).clamp(0, 1)


def mask_labels(mask: Any) -> np.ndarray:
    """The labels ``(x, y, z)`` of a mask, uint8."""
    return np.asarray(load_volume(mask).dataobj).astype(np.uint8)


@torch.inference_mode()
def reconstruct(pipe: InformedSlicePipeline, volume: torch.Tensor) -> torch.Tensor:
    """A volume ``(1, x, y, z)`` in [0, 1] through the pipeline's autoencoder, which bounds what the model can make."""
    return ((pipe.decode(pipe.encode(2 * volume[None] - 1))[0].clamp(-1, 1) + 1) / 2).cpu()


def seam_places(windows: Sequence[SliceWindow]) -> list[int]:
    """Slices that were generated in another window than the next slice."""
    made_in = {number: place for place, window in enumerate(windows) for number in window.generated}
    return [number for number in range(len(made_in) - 1) if made_in[number] != made_in[number + 1]]
