"""Tables of `bench_informed_slices.py`: values, differences from the baseline, and whether the paper is met."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from ablation_measures import paired_statistic
from ablation_tables import verdict
from informed_slice_measures import SLICES
from record import markdown_table

from voxdiff.metrics.features import PLANES
from voxdiff.metrics.fidelity import frechet_distance
from voxdiff.metrics.intervals import jackknife_interval
from voxdiff.metrics.paired import compare_paired, summarize

Features = Mapping[str, np.ndarray]
"""Plane -> features (volumes * slices, features)."""

FIDS = {f"FID-{plane[0].upper()}": plane for plane in PLANES}
CASE_METRICS = {
    "ms_ssim": "MS-SSIM to own",
    "perceptual": "perceptual to own",
    "seam": "jump at seams",
    "jump": "jump elsewhere",
}
_DIGITS = {"ms_ssim": 4, "perceptual": 4, "seam": 3, "jump": 3, **dict.fromkeys(FIDS, 3)}
_BLOCKS = 10

PAPER: dict[str, dict[str, dict[str, float]]] = {
    "flair": {
        "baseline": {"FID-A": 12.96, "FID-C": 62.63, "FID-S": 62.04, "ms_ssim": 0.817, "perceptual": 0.234},
        "baseline + MA": {"FID-A": 15.76, "FID-C": 71.64, "FID-S": 73.15},
        "own slice": {"ms_ssim": 0.887, "perceptual": 0.134},
        "IG": {"FID-A": 15.67, "FID-C": 14.32, "FID-S": 13.40},
        "IG + MA": {"FID-A": 18.22, "FID-C": 17.25, "FID-S": 16.92},
        "IC": {"FID-A": 2.07, "FID-C": 6.14, "FID-S": 6.33},
        "IC + MA": {"FID-A": 3.89, "FID-C": 11.76, "FID-S": 12.66},
    },
    "ct": {
        "baseline": {"FID-A": 2.66, "FID-C": 6.68, "FID-S": 4.25, "ms_ssim": 0.620, "perceptual": 0.318},
        "baseline + MA": {"FID-A": 2.83, "FID-C": 7.53, "FID-S": 5.43},
        "own slice": {"ms_ssim": 0.727, "perceptual": 0.204},
        "IG": {"FID-A": 3.35, "FID-C": 6.42, "FID-S": 4.67},
        "IG + MA": {"FID-A": 3.38, "FID-C": 6.92, "FID-S": 4.66},
        "IC": {"FID-A": 1.81, "FID-C": 4.21, "FID-S": 2.85},
        "IC + MA": {"FID-A": 1.84, "FID-C": 4.05, "FID-S": 2.69},
    },
}
"""GEM-3D's tables: BraTS for flair, AbdomenCT-1K for ct; the perceptual distance is LPIPS there."""


def set_values(record: Mapping[str, Any], features: Features, real: Features) -> dict[str, dict[str, float]]:
    """Mean (or FID) and 95 % interval of every column that a set has."""
    values = {
        name: {key: found[key] for key in ("mean", "low", "high")}
        for name, found in summarize(record["cases"]).items()
        if name in CASE_METRICS
    }
    values["diversity"] = record["diversity"]
    for name, plane in FIDS.items():
        values[name] = _jackknife(frechet_distance, real[plane], features[plane])
    return values


def compare_sets(
    cohort: str,
    names: tuple[str, str],
    records: Mapping[str, Mapping[str, Any]],
    features: Mapping[str, Features],
    real: Features,
) -> list[dict[str, Any]]:
    """First minus second of every column that both have, with the paper's numbers and the verdict."""
    first, second = names
    found = []
    shared = [name for name in CASE_METRICS if all(name in records[one]["cases"][0] for one in names)]
    pairs = compare_paired(*([_only(case, shared) for case in records[one]["cases"]] for one in names))
    for metric in (*shared, *FIDS):
        if metric in FIDS:
            plane = FIDS[metric]
            rows = np.concatenate([features[one][plane] for one in names], axis=1)
            difference = _jackknife(partial(paired_statistic, frechet_distance), real[plane], rows)
        else:
            difference = {key: pairs[metric][key] for key in ("mean", "low", "high")}
        published = [PAPER[cohort].get(one, {}).get(metric) for one in names]
        expected = 0 if None in published else int(np.sign(published[0] - published[1]))
        found.append(
            {
                "first": first,
                "second": second,
                "metric": metric,
                "paper": "-" if None in published else f"{published[0]:g} - {published[1]:g}",
                "difference": difference,
                "verdict": verdict(expected, [difference]).removesuffix(" (one seed)"),
            }
        )
    return found


def _jackknife(statistic: Callable[..., float], real: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Over volumes: the slices of one are left out together."""
    groups = [np.arange(len(some)) // SLICES for some in (real, rows)]
    found = jackknife_interval(
        statistic, real, rows, real_groups=groups[0], synthetic_groups=groups[1], num_blocks=_BLOCKS
    )
    return {"mean": found.estimate, "low": found.low, "high": found.high}


def _only(case: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: case[name] for name in ("case", *names)}


def values_table(values: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A row a set, every column; intervals in brackets."""
    headings = {**CASE_METRICS, "diversity": "MS-SSIM within the set", **dict.fromkeys(FIDS)}
    header = ["set", *(heading or name for name, heading in headings.items())]
    rows = [
        [name, *(_cell(found.get(column), _DIGITS.get(column, 4)) for column in headings)]
        for name, found in values.items()
    ]
    return markdown_table(header, rows)


def comparison_table(compared: Sequence[Mapping[str, Any]]) -> str:
    """A row a difference."""
    rows = [
        [
            f"{entry['first']} - {entry['second']}",
            CASE_METRICS.get(entry["metric"], entry["metric"]),
            entry["paper"],
            _cell(entry["difference"], _DIGITS[entry["metric"]], sign="+"),
            entry["verdict"],
        ]
        for entry in compared
    ]
    return markdown_table(["difference", "of", "paper", "here (95 %)", "verdict"], rows)


def _cell(found: Mapping[str, float] | None, digits: int, sign: str = "") -> str:
    if found is None:
        return "-"
    numbers = [f"{found[key]:{sign}.{digits}f}" for key in ("mean", "low", "high") if key in found]
    return numbers[0] if len(numbers) < 3 else f"{numbers[0]} ({numbers[1]} to {numbers[2]})"
