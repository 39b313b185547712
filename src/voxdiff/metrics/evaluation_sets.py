"""What is evaluated: options, the sets they open, what is refused before any heavy work, and the resulting protocol."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxdiff.metrics import anchors, set_checks
from voxdiff.metrics.extractors.base import FeatureExtractor
from voxdiff.metrics.extractors.registry import load_extractor
from voxdiff.metrics.perceptual import PerceptualBackbone
from voxdiff.metrics.protocol import Protocol
from voxdiff.metrics.sections import factors, pairs, subgroups, unpaired
from voxdiff.metrics.stages import Stage
from voxdiff.metrics.structural import MS_SSIM_WEIGHTS
from voxdiff.metrics.volume_sets import VolumeSet

Volumes = str | Path | np.ndarray | torch.Tensor | Sequence[np.ndarray]

DEFAULT_EXTRACTOR = "cohort-3d"
PLANE_EXTRACTOR = "cohort-2d"


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How to evaluate; every option that moves a number is part of the protocol.

    Attributes:
        paired: compare volumes of the same name, too.
        extractors: names as :func:`voxdiff.metrics.extractors.registry.load_extractor` takes them.
        planes: also 2.5D: features of axial, coronal and sagittal slices (FID-A, FID-C, FID-S).
        slices_per_plane: of each volume, evenly spaced over the middle three quarters of the axis.
        num: volumes of either set, the first by name; None takes all.
        pattern: which files of the folders, such as "*_t1.nii.gz".
        unit: "HU" or "a.u." where the headers do not say.
        size: grid to bring all volumes to.
        spacing: voxel size in mm to bring all volumes to.
        pairs: drawn within each set for its diversity.
        factors: "brain" (skull-stripped T1w in RAS) or "ct": compare the factors' distributions.
        subgroup: column of the folders' metadata.csv: everything unpaired again for each of its values.
        reidentify: train a network on the training set that recognises subjects (minutes).
        lpips_weights: VGG-16's weights for LPIPS, as `voxdiff convert-extractor` writes them; None takes the substitute.
        label_pattern: which files of the folders of masks and label maps.
        seed: of every random choice.
        device: where the extractors run.

    Raises:
        ValueError: a number below what it can be.
    """

    paired: bool = False
    extractors: Sequence[str] = (DEFAULT_EXTRACTOR,)
    planes: bool = False
    slices_per_plane: int = 16
    num: int | None = None
    pattern: str = "*"
    unit: str | None = None
    size: Sequence[int] | None = None
    spacing: Sequence[float] | None = None
    pairs: int = 200
    factors: str | None = None
    subgroup: str | None = None
    reidentify: bool = False
    lpips_weights: str | None = None
    label_pattern: str = "*"
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("pairs", 3), ("slices_per_plane", 1), ("seed", 0), ("num", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; give at least {least}.")


@dataclass(kw_only=True)
class EvaluationSets:
    """The sets of an evaluation, opened and checked."""

    real: VolumeSet
    synthetic: VolumeSet
    train: VolumeSet | None = None
    masks: VolumeSet | None = None
    labels: tuple[VolumeSet, VolumeSet] | None = None
    subgroups: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)


def open_sets(
    real: Volumes,
    synthetic: Volumes,
    train: Volumes | None,
    masks: str | Path | None,
    labels: tuple[str | Path, str | Path] | None,
    options: EvaluationOptions,
    cache: Path | None,
) -> EvaluationSets:
    """Open every set and refuse, from headers alone as far as they tell, what cannot be measured."""
    shared: dict[str, Any] = {"pattern": options.pattern, "unit": options.unit, "cache_dir": cache}
    _check_device(options.device)
    if masks is not None and not options.paired:
        raise ValueError("Masks were given without paired; only pairs are measured inside masks, ask for both.")
    if options.reidentify and train is None:
        raise ValueError("Re-identification was asked for without training volumes; give --train.")
    if options.paired and options.num is not None:
        raise ValueError(f"num is {options.num} with paired, which compares volumes by name; drop one of the two.")
    opened = VolumeSet.open(real, limit=options.num, size=options.size, spacing=options.spacing, **shared)
    sets = EvaluationSets(
        real=opened,
        synthetic=VolumeSet.open(synthetic, limit=options.num, processor=opened.processor, **shared),
        train=None if train is None else VolumeSet.open(train, processor=opened.processor, **shared),
    )
    factors.check_kind(options.factors, opened)
    unpaired.check_number(len(sets.real), "real")
    for volumes, what in ((sets.synthetic, "synthetic"), (sets.train, "training")):
        if volumes is not None:
            unpaired.check_number(len(volumes), what)
            set_checks.require_same_grid(volumes, opened)
    if sets.train is None:
        unpaired.check_halves(len(sets.real))
    if options.paired:
        pairs.match_names(opened, sets.synthetic, "The synthetic volumes")
    if masks is not None:
        sets.masks = pairs.open_labels(masks, opened, "The masks", options.label_pattern)
    if labels is not None:
        sets.labels = (
            pairs.open_labels(labels[0], opened, "The label maps", options.label_pattern),
            pairs.open_labels(labels[1], sets.synthetic, "The label maps", options.label_pattern),
        )
    if options.subgroup is not None:
        sets.subgroups = subgroups.find_subgroups(options.subgroup, opened, sets.synthetic)
        for value, places in sets.subgroups.items():
            for found, what in zip(places, ("real", "synthetic"), strict=True):
                unpaired.check_number(len(found), f"{what} {options.subgroup} {value}")
    return sets


def load_extractors(options: EvaluationOptions, *, need_3d: bool) -> list[FeatureExtractor]:
    """The extractors that were named, and one for slices where planes are asked for and none was.

    Raises:
        FileNotFoundError: weights are missing.
        ValueError: no extractor, an unknown one, or none that reads volumes where one is needed.
    """
    names = list(dict.fromkeys(options.extractors))
    if not names:
        raise ValueError("No extractor was named; give at least one.")
    loaded = [load_extractor(name, device=options.device) for name in names]
    twice = [name for name, count in Counter(extractor.name for extractor in loaded).items() if count > 1]
    if twice:
        raise ValueError(f"Two extractors are named {twice[0]}; evaluate them one after the other into two folders.")
    if options.planes and all(extractor.spatial_dims == 3 for extractor in loaded):
        loaded.append(load_extractor(PLANE_EXTRACTOR, device=options.device))
    if need_3d and all(extractor.spatial_dims == 2 for extractor in loaded):
        raise ValueError(
            f"Privacy is measured in the features of volumes and {', '.join(names)} reads slices only; add a 3D extractor."
        )
    return loaded


def prepare_sets(sets: EvaluationSets, stage: Stage) -> None:
    """Read everything once: what is broken is found now."""
    opened = [sets.real, sets.synthetic, sets.train, sets.masks, *(sets.labels or ())]
    wanted = [volumes for volumes in opened if volumes is not None]
    advance = stage("Reading volumes", sum(map(len, wanted)))
    for volumes in wanted:
        volumes.prepare(advance)
    if sets.masks is not None:
        empty = [name for name, mask in zip(sets.masks.names, sets.masks, strict=True) if not mask.any()]
        if empty:
            raise ValueError(f"{len(empty)} masks in {sets.masks.folder} are empty, such as {empty[0]}; repair them.")
    others = [volumes for volumes in (sets.synthetic, sets.train) if volumes is not None]
    set_checks.require_same_scale(others, sets.real)
    for volumes in others:
        set_checks.require_same_prepared_grid(volumes, sets.real)
    if sets.train is not None:
        set_checks.require_disjoint(sets.real, sets.train)


def make_protocol(
    sets: EvaluationSets,
    extractors: Sequence[FeatureExtractor],
    perceptual: PerceptualBackbone,
    options: EvaluationOptions,
) -> Protocol:
    """What pins the numbers of this evaluation."""
    sections = ["unpaired", "diversity"]
    sections += ["factors"] if options.factors or sets.labels else []
    sections += ["paired"] if options.paired else []
    sections += ["privacy"] if sets.train is not None else []
    grid = list(sets.real[0].shape[1:])
    return Protocol(
        preparation=sets.real.processor.to_dict(),
        grid=grid,
        spacing_mm=list(sets.real.spacing_mm),
        num_real=len(sets.real),
        num_synthetic=len(sets.synthetic),
        num_train=len(sets.train) if sets.train is not None else None,
        real_sha256=sets.real.content_digest,
        train_sha256=sets.train.content_digest if sets.train is not None else None,
        labels_sha256=sets.labels[0].content_digest if sets.labels is not None else None,
        masks_sha256=sets.masks.content_digest if sets.masks is not None else None,
        extractors=[extractor.settings() for extractor in extractors],
        slices_per_plane=options.slices_per_plane if any(e.spatial_dims == 2 for e in extractors) else None,
        ms_ssim={**_diversity_settings(grid), "data_range": 1.0, "pairs": options.pairs},
        blur_sigma=anchors.BLUR_SIGMA,
        sections=sections,
        options={
            "planes": options.planes,
            "factors": options.factors,
            "subgroup": options.subgroup,
            "reidentify": options.reidentify,
            "perceptual": {"name": perceptual.name, "sha256": perceptual.sha256},
        },
        seed=options.seed,
    )


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"The device {device!r} is unknown; give cpu, cuda or cuda:N.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"The device is {device!r} and this machine has no CUDA; give cpu.")


def _diversity_settings(grid: Sequence[int]) -> dict[str, Any]:
    """Five scales with a window of 7 voxels (as WDM's evaluation) where they fit, else as many of 5 voxels as fit.

    The standard window of 11 would leave a 64³ volume three scales, the last one with its middle only.
    """
    side = min(grid)
    if side >= 2**4 * 7:
        return {"scales": len(MS_SSIM_WEIGHTS), "kernel_size": 7, "sigma": 1.5}
    # MONAI asks for one window more a side than four scales need.
    scales = max(count for count, factor in {1: 1, 2: 2, 3: 4, 4: 9, 5: 16}.items() if side >= factor * 5 or count == 1)
    return {"scales": scales, "kernel_size": 5, "sigma": 1.0}
