"""Known factors of the volumes: brains, tissues or lesions, measured on both sets and compared as distributions."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from voxdiff.metrics.factor_distances import factor_distances
from voxdiff.metrics.factors import brain_factors, ct_tissue_fractions, lesion_factors
from voxdiff.metrics.markdown import interval, number, table
from voxdiff.metrics.sections.pairs import label_map
from voxdiff.metrics.volume_sets import VolumeSet

KINDS = ("brain", "ct")
"""What can be measured on images alone: skull-stripped T1w brains in RAS, and CT in HU."""


def measure_factors(
    kind: str | None,
    real: VolumeSet,
    synthetic: VolumeSet,
    *,
    labels: tuple[VolumeSet, VolumeSet] | None = None,
    seed: int = 0,
    on_volume: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Distances between the factors' distributions.

    Args:
        kind: "brain", "ct", or None for the labels alone.
        real: the reference volumes.
        synthetic: the volumes to judge.
        labels: lesion labels (BraTS 2023) of both sets: lesion volumes are compared, too.
        seed: of the intervals and of the real halves that give the floor.
        on_volume: called after each volume of either set.
    """
    measured = []
    for place, volumes in enumerate((real, synthetic)):
        rows = []
        for index in range(len(volumes)):
            row = _measure(kind, volumes, index)
            if labels is not None:
                found = lesion_factors(label_map(labels[place], index), volumes.spacing_mm)
                row |= {f"lesion_{name}": float(value) for name, value in asdict(found).items()}
            rows.append(row)
            if on_volume is not None:
                on_volume()
        measured.append(rows)
    return {"kind": kind, "factors": {k: asdict(v) for k, v in factor_distances(*measured, seed=seed).items()}}


def check_kind(kind: str | None, volumes: VolumeSet) -> None:
    """Refuse factors that these volumes cannot show.

    Raises:
        ValueError: an unknown kind, or CT tissues asked of volumes that are not in HU.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"The factors are {kind!r}; choose one of {', '.join(KINDS)}.")
    if kind == "ct" and volumes.processor.unit != "HU":
        raise ValueError(
            f"CT tissues are told by HU and the volumes are in {volumes.processor.unit}; drop the factors."
        )


def _measure(kind: str | None, volumes: VolumeSet, index: int) -> dict[str, float]:
    if kind == "brain":
        return asdict(brain_factors(volumes[index][0].numpy(), volumes.spacing_mm))
    if kind == "ct":
        low, high = float(volumes.processor.low or 0), float(volumes.processor.high or 0)
        return dict(ct_tissue_fractions(volumes[index][0].numpy() * (high - low) + low))
    return {}


def markdown(data: dict[str, Any]) -> str:
    """A row a factor."""
    rows = [
        [
            name.replace("_", " "),
            f"{number(found['real_mean'])} ± {number(found['real_sd'])}",
            f"{number(found['synthetic_mean'])} ± {number(found['synthetic_sd'])}",
            interval(found["wasserstein"]),
            f"{number(found['floor'])} ({number(found['floor_high'])})",
            interval(found["wasserstein_in_sd"]),
            interval(found["spread_ratio"]),
        ]
        for name, found in data["factors"].items()
    ]
    header = ["factor", "real", "synthetic", "Wasserstein", "floor (95th percentile)", "in real sd", "spread ratio"]
    return (
        f"## Factors\n\n{table(header, rows)}\n"
        "Mean ± standard deviation over the set; Wasserstein-1 distance of the distributions in the factor's unit and in "
        "standard deviations of the real set; the floor is that of random halves of the real set; a spread ratio below 1 "
        "means less variety than among the real volumes. A dash: the real set does not vary; a ratio without an interval: "
        "its variation hangs on a few volumes.\n"
    )
