"""Paired metrics of a whole set: synthetic volumes beside the real ones of the same name."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxdiff.metrics.markdown import number, table
from voxdiff.metrics.paired import paired_metrics, summarize
from voxdiff.metrics.perceptual import PerceptualBackbone, lpips
from voxdiff.metrics.protocol import PROTOCOL_VERSION
from voxdiff.metrics.segmentation import BRATS_REGIONS, segmentation_metrics
from voxdiff.metrics.volume_sets import VolumeSet
from voxdiff.volumes import VolumeProcessor, atomic_path

LABEL_RANGE = 255.0
NAMES = {
    "mse": "MSE",
    "mae": "MAE",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "four_g_ssim": "4-G-SSIM",
    "four_ms_g_ssim": "4-MS-G-SSIM",
}


def match_names(first: VolumeSet, second: VolumeSet, what: str) -> list[int]:
    """Places in `second` of the volumes named as those of `first`: by their names below the folders, or by file names.

    What a pattern adds to a name ("_t1" of "*_t1.nii.gz") does not count.

    Raises:
        ValueError: a volume of either set has no partner.
    """
    for simplify in (str, lambda name: Path(name).name):
        names, others = ([simplify(name) for name in volumes] for volumes in (first.case_names, second.case_names))
        if set(names) == set(others) and len(set(names)) == len(names) == len(others):
            return [others.index(name) for name in names]
    alone = sorted({*first.case_names} ^ {*second.case_names})
    raise ValueError(
        f"{what} in {second.folder} do not match the volumes in {first.folder} ({len(second)} and {len(first)}; "
        f"without a partner: {', '.join(alone[:3]) or 'names that occur twice'}); give each volume one of the same name."
    )


def open_labels(folder: str | Path, like: VolumeSet, what: str, pattern: str = "*") -> VolumeSet:
    """Label maps or masks for the volumes of a set, on its grid and in its order.

    Raises:
        FileNotFoundError: the folder is missing or holds no volume.
        ValueError: a volume has no label map of its name, or one on another grid.
    """
    rules = like.processor
    processor = VolumeProcessor(
        orientation=rules.orientation,
        spacing=rules.spacing,
        size=rules.size,
        padding=rules.padding,
        intensity="labels",
        low=0,
        high=LABEL_RANGE,
        value_range=(0.0, 1.0),
        background=0,
    )
    labels = VolumeSet.open(folder, pattern=pattern, processor=processor, cache_dir=like.cache_dir)
    labels = labels.subset(match_names(like, labels, what))
    for source, volume in zip(labels.sources, like.sources, strict=True):
        if source.header.grid() != volume.header.grid():
            raise ValueError(
                f"{source.volume} has {source.header.grid()} and its volume {volume.header.grid()}; {what.lower()} must "
                "lie on the grid of their volumes."
            )
    return labels


def label_map(labels: VolumeSet, place: int) -> np.ndarray:
    """Whole numbers (x, y, z)."""
    return (labels[place][0] * LABEL_RANGE).round().to(torch.uint8).numpy()


def measure_pairs(
    real: VolumeSet,
    synthetic: VolumeSet,
    *,
    masks: VolumeSet | None = None,
    labels: tuple[VolumeSet, VolumeSet] | None = None,
    regions: Mapping[str, Sequence[int]] = BRATS_REGIONS,
    perceptual: PerceptualBackbone | None = None,
    cache_dir: Path | None = None,
    seed: int = 0,
    on_volume: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Paired metrics of every case, and their summary.

    Args:
        real: the reference volumes.
        synthetic: as many, of the same names.
        masks: measure inside these only, one a real volume.
        labels: label maps of the real and of the synthetic volumes, for Dice and HD95.
        regions: the labels that make up each region.
        perceptual: backbone of the perceptual distance.
        cache_dir: where finished cases are kept.
        seed: of the intervals.
        on_volume: called after each case.
    """
    order = match_names(real, synthetic, "The synthetic volumes")
    cases = []
    for place, partner in enumerate(order):
        sources = [real.digest(place), synthetic.digest(partner)]
        sources += [masks.digest(place)] if masks is not None else []
        sources += [labels[0].digest(place), labels[1].digest(partner)] if labels is not None else []
        key = json.dumps(
            [
                *(PROTOCOL_VERSION, sources, real.spacing_mm, real.processor.to_dict(), dict(regions)),
                perceptual and [perceptual.name, perceptual.sha256],
            ]
        )
        cached = cache_dir / f"pair-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json" if cache_dir else None
        if cached is not None and cached.is_file():
            case = _read_case(cached)
        else:
            case = _measure_case(real, synthetic, place, partner, masks, perceptual)
            if labels is not None:
                maps = label_map(labels[1], partner), label_map(labels[0], place)
                case |= segmentation_metrics(*maps, spacing_mm=real.spacing_mm, regions=regions)
            if cached is not None:
                with atomic_path(cached) as temporary:
                    temporary.write_text(json.dumps(case), encoding="utf-8")
        cases.append({"case": real.case_names[place], **case})
        if on_volume is not None:
            on_volume()
    return {
        "cases": cases,
        "summary": summarize(cases, seed=seed),
        "unit": real.processor.unit,
        "data_range": _data_range(real.processor),
        "rule": real.processor.intensity,
        "inside_masks": masks is not None,
        "perceptual": perceptual.name if perceptual else None,
    }


def _read_case(path: Path) -> dict[str, float]:
    try:
        case: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"The finished case {path} cannot be read ({error}); delete the file.") from error
    return case


def _measure_case(
    real: VolumeSet,
    synthetic: VolumeSet,
    place: int,
    partner: int,
    masks: VolumeSet | None,
    perceptual: PerceptualBackbone | None,
) -> dict[str, float]:
    rules, width = real.processor, _data_range(real.processor)
    low = float(rules.low or 0.0) if rules.intensity == "window" else 0.0
    first, second = (volumes[index] for volumes, index in ((real, place), (synthetic, partner)))
    mask = masks[place][0] > 0 if masks is not None else None
    case = paired_metrics(first * width + low, second * width + low, data_range=width, low=low, mask=mask)
    if perceptual is not None:
        inside = 1 if mask is None else mask
        case["lpips"] = lpips((first * inside)[None], (second * inside)[None], backbone=perceptual).item()
    return case


def _data_range(rules: VolumeProcessor) -> float:
    """Width of the data range in the unit of the results: of the window, or 1 where each volume was scaled to [0, 1]."""
    return float(rules.high) - float(rules.low) if rules.intensity == "window" else 1.0  # type: ignore[arg-type]


def markdown(data: dict[str, Any]) -> str:
    """The summary as a table."""
    where = "inside the masks" if data["inside_masks"] else "over all voxels"
    rows = []
    for name, found in data["summary"].items():
        if name == "ms_ssim_scales":
            continue
        label = NAMES.get(name, data["perceptual"] if name == "lpips" else name)
        label += f" ({data['unit']})" if name == "mae" else ""
        spread = f"{number(found['mean'])} ± {number(found['sd'])}"
        rows.append([label, spread, f"{number(found['low'])} to {number(found['high'])}", str(found["n"])])
    scales = data["summary"]["ms_ssim_scales"]["mean"]
    notes = {
        "percentile": " Each volume was scaled by its own percentiles: a wrong global intensity or offset does not show.",
        "window": " Values beyond the window were cut off before." if data["unit"] == "HU" else "",
    }
    return (
        f"## Pairs\n\n{table(['metric', 'mean ± sd of a case', '95 % interval of the mean', 'cases'], rows)}\n"
        f"Measured {where}; data range {number(data['data_range'])} {data['unit']}; {scales:.0f} scales in the "
        f"multi-scale metrics. Every case is in `cases.csv`.{notes.get(data['rule'], '')}\n"
    )
