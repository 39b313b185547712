"""The parts of `bench_resampling.py`: what is made, and what is measured of it."""

import argparse
import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from informed_slice_sets import GEM, VolumeSet, make_set, mask_labels, reconstruct, unit_volume
from resampling_measures import (
    counted,
    describe_nearness,
    edit_effects,
    measure_nearness,
    region_medians,
    spread,
)
from turns import take_turns

from voxdiff import InformedSlicePipeline
from voxdiff.data.brain_masks import BRAIN_LABEL, TUMOUR_LABELS
from voxdiff.data.ct_anatomy import ORGANS
from voxdiff.data.mask_augmentation import transform_mask
from voxdiff.metrics.copies import copy_distances
from voxdiff.schedulers import make_scheduler
from voxdiff.workflows.counterfactual import Counterfactual, counterfactual
from voxdiff.workflows.harmonize import harmonize
from voxdiff.workflows.masked_cases import MaskedCase, label_image


@dataclass
class Bench:
    """What all parts share.

    Attributes:
        pipe: The model.
        args: Of the command line.
        test: Held-out subjects.
        train: Subjects that the model was trained on, for the part privacy.
        picture: Of the first counterfactual, once it is made.
    """

    pipe: InformedSlicePipeline
    args: argparse.Namespace
    test: list[MaskedCase]
    train: list[MaskedCase]
    picture: Path | None = None

    def volumes(self, images: Sequence[Any]) -> list[torch.Tensor]:
        """Prepared as for training, ``(1, x, y, z)`` in [0, 1]."""
        return [unit_volume(image, self.pipe.volume_processor) for image in images]

    def cross_set(self, cases: Sequence[MaskedCase], folder: str, *, augmented: bool = False) -> list[dict[str, Any]]:
        """The masks of the cases with slices of other ones."""
        wanted = VolumeSet(
            name="IC",
            model=GEM,
            informed="cross",
            augmented=augmented,
            steps=self.args.default_steps,
            volumes=self.args.volumes,
        )
        models = {GEM: self.pipe}
        return make_set(wanted, models, cases, self.args.runs / folder, batch_size=self.args.batch_size)


def harmonise(bench: Bench) -> dict[str, Any]:
    """Spread of intensities across subjects; the informed slice is that of the first subject that is not harmonised."""
    args = bench.args
    cases = sorted(bench.test[: args.volumes], key=lambda case: case.name)
    donor = (bench.test[args.volumes :] or bench.test)[0]
    harmonised = harmonize(
        bench.pipe,
        cases,
        args.runs / "harmonised",
        informed_slice=donor.image,
        num_inference_steps=args.default_steps,
        batch_size=args.batch_size,
    )
    real = bench.volumes([case.image for case in cases])
    sets = {
        "autoencoder": [reconstruct(bench.pipe, volume) for volume in real],
        "IC": bench.volumes([entry["image"] for entry in bench.cross_set(cases, "sets")]),
        "harmonised": bench.volumes(harmonised.images),
    }
    masks, regions = [mask_labels(case.mask) for case in cases], regions_of(args.cohort)
    before = region_medians(real, masks, regions)
    found = {}
    for name, volumes in sets.items():
        after = region_medians(volumes, masks, regions)
        found[name] = {region: spread(before[region], after[region]) for region in regions}
    return {"donor": donor.name, "spread": found}


def regions_of(cohort: str) -> dict[str, tuple[int, ...]]:
    """Where intensities are compared."""
    if cohort == "ct":
        return {name: (place,) for place, name in enumerate(ORGANS, 1)}
    return {"brain": (BRAIN_LABEL,), "oedema": (2,), "enhancing": (3,), "necrosis": (1,)}


def edits(labels: np.ndarray, spacing: Sequence[float], shift: float) -> dict[str, np.ndarray]:
    """The mask without its tumour, and with the tumour `shift` mm nearer to the centre of the brain."""
    tumour = np.isin(labels, TUMOUR_LABELS)
    way = (np.argwhere(labels > 0).mean(axis=0) - np.argwhere(tumour).mean(axis=0)) * np.asarray(spacing)
    way *= shift / max(float(np.linalg.norm(way)), 1e-6)
    return {
        "removed": np.where(tumour, BRAIN_LABEL, labels).astype(labels.dtype),
        "moved": transform_mask(labels, spacing=spacing, shift=way.tolist()),
    }


def edit_tumours(bench: Bench) -> dict[str, Any]:
    """Change inside and outside edits of the tumour, and the change outside that other noise makes."""
    found: dict[str, list[Counterfactual]] = {"removed": [], "moved": []}
    noise = []
    for case in bench.test[: bench.args.edits]:
        labels = mask_labels(case.mask)
        edited = edits(labels, case.load_mask().header.get_zooms(), bench.args.shift)
        for kind, values in edited.items():
            folder = bench.args.runs / "counterfactuals" / f"{case.name}-{kind}"
            changed = counterfactual(
                bench.pipe,
                case,
                label_image(values, case.load_mask()),
                folder,
                num_inference_steps=bench.args.default_steps,
                margin=1,
            )
            found[kind].append(changed)
            bench.picture = bench.picture or folder / "difference.png"
        noise.append(change_by_noise(bench, case, changed, values != labels))
    effects = {
        kind: edit_effects([one.inside for one in changes], [one.outside for one in changes])
        for kind, changes in found.items()
    }
    return {"edits": effects, "noise": {"mean": float(np.mean(noise))}}


def change_by_noise(bench: Bench, case: MaskedCase, made: Counterfactual, edited: np.ndarray) -> float:
    """Mean absolute difference, in the brain outside the edit, to a volume with other noise and the same mask."""
    other = bench.pipe(
        case.load_mask(),
        informed_slice=case.image,
        start_position=made.slice_index,
        num_inference_steps=bench.args.default_steps,
        generator=torch.Generator().manual_seed(1),
    ).volumes[0]
    difference = np.asarray(other.dataobj) - np.asarray(made.original.dataobj)
    return float(np.abs(difference[(mask_labels(case.mask) > 0) & ~edited]).mean())


def privacy(bench: Bench) -> dict[str, Any]:
    """Nearness of enhanced training volumes to the real ones that they were made of."""
    args = bench.args
    references = dict(
        zip([case.name for case in bench.train], bench.volumes([case.image for case in bench.train]), strict=True)
    )
    heldout = copy_distances(
        bench.volumes([case.image for case in bench.test[: args.heldout]]), list(references.values())
    )
    cases = bench.train[: args.volumes]
    owners = [case.name for case in cases]
    sets: dict[str, tuple[list[torch.Tensor], list[str], list[str | None]]] = {
        "autoencoder (control)": (
            [reconstruct(bench.pipe, references[name]) for name in owners],
            owners,
            [None] * len(owners),
        )
    }
    for name, augmented in (("IC", False), ("IC + MA", True)):
        made = bench.cross_set(cases, "train-sets", augmented=augmented)
        images = bench.volumes([entry["image"] for entry in made])
        sets[name] = (images, [entry["case"] for entry in made], [entry["donor"] for entry in made])
    found = {}
    for name, (volumes, masks_of, slices_of) in sets.items():
        nearness = measure_nearness(volumes, masks_of, slices_of, references)
        found[name] = describe_nearness(nearness, masks_of, slices_of, list(references), heldout)
    real = {"volumes": len(heldout.distances), "to_nearest": float(heldout.distances.median())}
    return {"sets": found, "heldout": real}


def cost(bench: Bench) -> dict[str, Any]:
    """Calls and seconds a volume, one volume at a time."""
    args, case = bench.args, bench.test[0]
    published = copy.copy(bench.pipe)
    prediction = bench.pipe.scheduler.config["prediction_type"]
    published.scheduler = make_scheduler("gem-ddim", prediction_type=prediction)
    settings: dict[str, dict[str, Any]] = {
        "published procedure": {
            "num_inference_steps": args.published_steps,
            "eta": 1.0,
            "propagation": "official",
            "known_slice_noise": "official",
        },
        "ours": {"num_inference_steps": args.default_steps},
    }
    calls: dict[str, Any] = {}

    def generate(name: str, pipe: InformedSlicePipeline) -> torch.Tensor:
        with counted(pipe.unet) as watched:
            (volumes,) = pipe(
                case.load_mask(),
                informed_slice=case.image,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
                return_dict=False,
                **settings[name],
            )
        calls.setdefault(name, []).append(watched)
        return volumes

    named = {"published procedure": published, "ours": bench.pipe}
    made: dict[str, Callable[[], torch.Tensor]] = {
        name: (lambda name=name, pipe=pipe: generate(name, pipe)) for name, pipe in named.items()
    }
    measured, _ = take_turns(made, rounds=args.rounds, device="cpu", reference="published procedure")
    for name, runs in calls.items():
        measured[name] |= {
            "calls": len(runs[0].sizes),
            "windows": sum(runs[0].sizes),
            "network_s": round(statistics.median(run.seconds for run in runs), 3),
        }
    return {"measured": measured}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "harmonise": harmonise,
    "counterfactual": edit_tumours,
    "privacy": privacy,
    "cost": cost,
}
