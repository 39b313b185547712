"""Sets of volumes for `bench_slice_conditioned.py`: kept one file a seed, and what is measured of them."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxdiff import SliceConditionedPipeline
from voxdiff.metrics.extractors.registry import load_extractor
from voxdiff.metrics.factor_distances import factor_distances
from voxdiff.metrics.features import PLANES, extract_features
from voxdiff.metrics.fidelity import dot_product_mmd, frechet_distance
from voxdiff.metrics.intervals import jackknife_interval, mean_interval, pairwise_mean_interval
from voxdiff.metrics.similarity import draw_pairs, ms_ssim
from voxdiff.metrics.structural import MSSSIMSettings, ms_ssim_settings
from voxdiff.pipelines.slice_stages import SliceStage
from voxdiff.pipelines.stage_batches import batch_stages
from voxdiff.schedulers import swap_scheduler
from voxdiff.volumes import load_volume, save_volumes

EXTRACTOR = "cohort-2d"
SLICES, PAIRS, BLOCKS = 16, 300, 10
_FOREGROUND, _LEAST_AREA = 0.1, 0.01  # of the intensity range, of a slice

Row = dict[str, dict[str, float]]
"""Column -> ``mean`` and, where it has an interval, ``low`` and ``high``."""


@dataclass(frozen=True, kw_only=True)
class SampledSet:
    """How the volumes of a set are made, from the seeds 0, 1, ...

    Attributes:
        name: In the table.
        steps: Solver steps a stage.
        volumes: How many.
        scheduler: Short name; None is the model's own.
        settings: Further arguments of the pipeline.
        folder: Name of the set whose volumes these are the first of; None is its own.
    """

    name: str
    steps: int
    volumes: int
    scheduler: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None


def sample_set(wanted: SampledSet, pipe: Any, folder: Path) -> tuple[list[torch.Tensor], float]:
    """Volumes ``(1, x, y, z)``, those that are not in the folder made now; and the median of their seconds."""
    name = re.sub(r"[^a-z0-9]+", "-", (wanted.folder or wanted.name).lower()).strip("-")
    folder = folder / f"{name}-{wanted.steps}"
    own = pipe.scheduler
    pipe.scheduler = own if wanted.scheduler is None else swap_scheduler(own, wanted.scheduler)
    for seed in range(wanted.volumes):
        if not (folder / f"volume-{seed:04d}.nii.gz").exists():
            generator = torch.Generator().manual_seed(seed)
            output = pipe(num_inference_steps=wanted.steps, generator=generator, **wanted.settings)
            save_volumes(output, folder, first_index=seed)
    pipe.scheduler = own
    paths = [folder / f"volume-{seed:04d}.nii.gz" for seed in range(wanted.volumes)]
    records = [json.loads(path.with_name(f"{path.name[:-7]}.json").read_text(encoding="utf-8")) for path in paths]
    volumes = [torch.from_numpy(load_volume(path).get_fdata(dtype=np.float32))[None] for path in paths]
    return volumes, float(np.median([record["seconds"] for record in records]))


def plan(pipe: SliceConditionedPipeline, wanted: SampledSet, depth: int) -> list[SliceStage]:
    """The stages of a volume of the set."""
    sizes = ("scheme", "stage_size", "context_size")
    return pipe.plan(depth, **{name: wanted.settings[name] for name in sizes if name in wanted.settings})


def count_work(stages: Sequence[SliceStage], steps: int) -> dict[str, int]:
    """Calls of the network for one volume, one after the other, and the slices in them, context included."""
    slices = sum(len(stage.targets) + len(stage.context) for stage in stages)
    return {"calls": len(batch_stages(stages)) * steps, "slices": slices * steps}


def seam_places(stages: Sequence[SliceStage], depth: int) -> list[int]:
    """Slices that were made in another stage than the next one."""
    stage_of = {number: place for place, stage in enumerate(stages) for number in stage.targets}
    return [number for number in range(depth - 1) if stage_of.get(number) != stage_of.get(number + 1)]


@dataclass(frozen=True)
class Reference:
    """Real volumes that are in no set, and what sets are compared with.

    Attributes:
        volumes: ``(1, x, y, z)`` in [0, 1].
        axis: Along which the slices run.
        features: Plane -> of its slices.
        ends: :func:`head_ends` of each.
        jumps: Mean :func:`slice_jumps`.
    """

    volumes: Sequence[torch.Tensor]
    axis: int
    features: dict[str, np.ndarray]
    ends: list[dict[str, float]]
    jumps: np.ndarray


def make_reference(volumes: Sequence[torch.Tensor], axis: int) -> Reference:
    jumps = np.mean([slice_jumps(volume, axis) for volume in volumes], axis=0)
    features = {plane: plane_features(volumes, plane) for plane in PLANES}
    return Reference(volumes, axis, features, [head_ends(volume, axis) for volume in volumes], jumps)


def measure_set(volumes: Sequence[torch.Tensor], reference: Reference, seams: Sequence[int] = ()) -> Row:
    """Every column of a set of volumes ``(1, x, y, z)`` in [0, 1]; `seams` are places between slices of two stages."""
    pairs = draw_pairs(len(volumes), PAIRS, 0)
    settings = similarity_settings(volumes[0].shape)
    similar = [
        ms_ssim(volumes[first][None], volumes[second][None], **settings).item() for first, second in pairs.tolist()
    ]
    row = {"ms_ssim": _interval(pairwise_mean_interval(np.array(similar), pairs))}
    row["mmd"] = {"mean": dot_product_mmd(reference.volumes, volumes)}
    groups = [np.repeat(np.arange(len(each)), SLICES) for each in (reference.volumes, volumes)]
    blocks = min(BLOCKS, len(volumes), len(reference.volumes))
    for plane, features in reference.features.items():
        fid = jackknife_interval(
            frechet_distance,
            features,
            plane_features(volumes, plane),
            real_groups=groups[0],
            synthetic_groups=groups[1],
            num_blocks=blocks,
        )
        row[f"fid_{plane}"] = _interval(fid)
    return row | _measure_ends(volumes, reference) | measure_jumps(volumes, reference, seams)


def similarity_settings(shape: Sequence[int]) -> MSSSIMSettings:
    """Those of the house's tables at 64 voxels a side; on smaller grids what fits."""
    if min(shape[-3:]) >= 64:
        return {"scales": 4, "kernel_size": 5, "sigma": 1.0}
    return ms_ssim_settings(shape)


def _measure_ends(volumes: Sequence[torch.Tensor], reference: Reference) -> Row:
    ends = [head_ends(volume, reference.axis) for volume in volumes]
    distances = factor_distances(reference.ends, ends)
    row = {}
    for name in ("first", "last"):
        row[name] = _interval(mean_interval(np.array([end[name] for end in ends])))
        row[f"{name}_distance"] = _interval(distances[name].wasserstein)
    return row


def measure_jumps(volumes: Sequence[torch.Tensor], reference: Reference, seams: Sequence[int]) -> Row:
    """Mean :func:`slice_jumps` over the real ones: of all neighbours, within stages, and at the seams."""
    jumps = np.array([slice_jumps(volume, reference.axis) for volume in volumes])
    at_seam = np.isin(np.arange(jumps.shape[1]), list(seams))
    places = {"jump": np.ones_like(at_seam)}
    if at_seam.any():
        places |= {"stage_jump": ~at_seam, "seam_jump": at_seam}
    return {
        name: _interval(mean_interval(jumps[:, where].sum(1) / reference.jumps[where].sum()))
        for name, where in places.items()
        if where.any()
    }


def head_ends(volume: torch.Tensor, axis: int) -> dict[str, float]:
    """``first`` and ``last`` slice of ``(1, x, y, z)`` along an axis that shows a head; -1 if none does."""
    area = (volume[0].movedim(axis, 0) > _FOREGROUND).float().mean((1, 2))
    places = (area > _LEAST_AREA).nonzero().flatten().tolist() or [-1]
    return {"first": float(places[0]), "last": float(places[-1])}


def slice_jumps(volume: torch.Tensor, axis: int) -> np.ndarray:
    """Mean absolute difference of neighbouring slices of ``(1, x, y, z)``: ``(slices - 1,)``."""
    return volume[0].movedim(axis, -1).double().diff(dim=2).abs().mean((0, 1)).numpy()


def plane_features(volumes: Sequence[torch.Tensor], plane: str) -> np.ndarray:
    """Features ``(volumes * SLICES, features)`` of slices, volume by volume."""
    return extract_features(load_extractor(EXTRACTOR), volumes, plane=plane, slices_per_plane=SLICES).values


def _interval(found: Any) -> dict[str, float]:
    return {"mean": found.estimate, "low": found.low, "high": found.high}
