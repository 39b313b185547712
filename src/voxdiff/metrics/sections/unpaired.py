"""Fidelity and diversity of a synthetic set in the features of one extractor, beside anchors of known quality."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from voxdiff.metrics import fidelity, intervals, manifold
from voxdiff.metrics.anchors import ANCHORS, random_halves
from voxdiff.metrics.features import FeatureSet
from voxdiff.metrics.markdown import estimate, table
from voxdiff.metrics.mmd_intervals import mmd_interval

SYNTHETIC = "synthetic"
SYNTHETIC_HALF = "synthetic, against the reals of the anchors"
METRICS = {
    "fid": "FID",
    "kid": "KID",
    "gaussian_mmd": "MMD (Gaussian)",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "inception_score": "Inception Score",
}
"""Key in the JSON -> name in the Markdown."""

PRECISION_K, DENSITY_K = 3, 5
"""Neighbours of precision and recall, and of density and coverage."""

_BOUNDS = {"fid": (0.0, np.inf), "precision": (0.0, 1.0), "recall": (0.0, 1.0), "coverage": (0.0, 1.0)}
_BOUNDS |= {"density": (0.0, np.inf), "inception_score": (1.0, np.inf)}
_PLANE_LETTERS = {"axial": "A", "coronal": "C", "sagittal": "S"}
_SMALLEST_SET = DENSITY_K + 2  # the intervals leave out one volume, and a ball reaches to its k-th other one


def check_number(number: int, what: str, least: int = _SMALLEST_SET) -> None:
    """Refuse sets too small for the statistics.

    Raises:
        ValueError: fewer volumes than the least.
    """
    if number < least:
        raise ValueError(
            f"The {what} set has {number} volume(s); give at least {least}, and 100 or more for numbers that say much."
        )


def check_halves(number: int) -> None:
    """Refuse a real set whose halves, which give the anchors without training volumes, are too small.

    Raises:
        ValueError: the halves are too small.
    """
    check_number(number, "real", 2 * _SMALLEST_SET)


def measure_unpaired(
    extractor: dict[str, Any],
    plane: str | None,
    real: FeatureSet,
    synthetic: FeatureSet,
    anchor_reference: FeatureSet,
    anchors: Mapping[str, FeatureSet],
    *,
    matched: FeatureSet | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Every statistic of the synthetic set with its interval, and of each anchor.

    Args:
        extractor: settings of the extractor.
        plane: of the slices, None in 3D.
        real: features of the real volumes.
        synthetic: features of the synthetic volumes.
        anchor_reference: features that the anchors are compared with.
        anchors: name -> features; with none, half of the real volumes are compared with the other half, where they
            are enough for that.
        matched: as many synthetic volumes as an anchor has, to be compared with the anchors' reference, too.
        seed: of the intervals and of the halves.
    """
    rows = {SYNTHETIC: _estimates(real, synthetic, seed)}
    if not anchors and real.num_volumes >= 2 * _SMALLEST_SET:
        halves = [real.of_volumes(half) for half in random_halves(real.num_volumes, seed)]
        count = min(halves[1].num_volumes, synthetic.num_volumes)
        anchor_reference, anchors = halves[0], {ANCHORS[0]: halves[1].of_volumes(range(count))}
        matched = synthetic.of_volumes(range(count))
    if matched is not None:
        rows[SYNTHETIC_HALF] = _values(anchor_reference, matched)
    rows |= {name: _values(anchor_reference, features) for name, features in anchors.items()}
    return {
        "extractor": extractor["name"],
        "note": extractor["note"],
        "plane": plane,
        "features": int(real.values.shape[1]),
        "rows": rows,
        "warnings": _warnings(real, synthetic),
    }


def markdown(results: list[dict[str, Any]]) -> str:
    """A table for each extractor and plane."""
    parts = ["## Fidelity and diversity in feature space\n"]
    for data in results:
        metrics = [metric for metric in METRICS if metric in data["rows"][SYNTHETIC]]
        rows = [
            [name, f"{values['n_reference']}, {values['n']}", *(estimate(values.get(metric)) for metric in metrics)]
            for name, values in data["rows"].items()
        ]
        header = ["set", "volumes: reference, set", *(METRICS[metric] for metric in metrics)]
        parts.append(
            f"### {title(data)}\n\n{data['note'][:1].upper()}{data['note'][1:]}; {data['features']} features.\n"
        )
        parts.append(table(header, rows))
        if set(data["rows"]) == {SYNTHETIC}:
            parts.append(
                f"A floor from two halves needs {2 * _SMALLEST_SET} real volumes; that of the whole set's table has other "
                "numbers of volumes, with which the Fréchet distance moves.\n"
            )
        if data["plane"] is not None:
            parts.append(
                "Every slice is a sample, as in the papers; slices of one volume are alike, so that equal sets come out "
                "above 0: read these numbers beside the row of the other reals.\n"
            )
    return "\n".join(parts)


def title(data: dict[str, Any]) -> str:
    """The extractor, and the plane of its slices."""
    if data["plane"] is None:
        return str(data["extractor"])
    return f"{data['extractor']}, {data['plane']} slices (FID-{_PLANE_LETTERS[data['plane']]})"


def _values(reference: FeatureSet, found: FeatureSet) -> dict[str, Any]:
    """The statistics without intervals."""
    first, second = reference.values, found.values
    values = {
        "fid": fidelity.frechet_distance(first, second),
        "kid": fidelity.kernel_inception_distance(first, second),
    }
    if _is_one_row_a_volume(found):
        values["gaussian_mmd"] = fidelity.gaussian_mmd(first, second)
        near = manifold.precision_recall(first, second, PRECISION_K)
        full = manifold.density_coverage(first, second, DENSITY_K)
        values |= {"precision": near.precision, "recall": near.recall}
        values |= {"density": full.density, "coverage": full.coverage}
    if found.probabilities is not None:
        values["inception_score"] = fidelity.inception_score(found.probabilities)
    counts = {"n_reference": reference.num_volumes, "n": found.num_volumes}
    return {**counts, **{name: {"value": float(value)} for name, value in values.items()}}


def _estimates(real: FeatureSet, synthetic: FeatureSet, seed: int) -> dict[str, Any]:
    """The statistics with their 95 % intervals; slices of a volume stay together."""
    row = _values(real, synthetic)
    groups: dict[str, Any] = {"real_groups": real.groups, "synthetic_groups": synthetic.groups}
    first, second = real.values, synthetic.values
    found = {
        "fid": intervals.jackknife_interval(fidelity.frechet_distance, first, second, **groups, seed=seed),
        "kid": mmd_interval(first, second, **groups),
    }
    if _is_one_row_a_volume(synthetic):
        width = fidelity.median_distance(np.concatenate([first, second]))
        found["gaussian_mmd"] = mmd_interval(first, second, kernel=fidelity.gaussian_kernel(width))
        found |= intervals.manifold_intervals(first, second, k_precision=PRECISION_K, k_density=DENSITY_K, seed=seed)
    if synthetic.probabilities is not None and real.probabilities is not None:
        found["inception_score"] = intervals.jackknife_interval(
            lambda _, probabilities: fidelity.inception_score(probabilities),
            real.probabilities,
            synthetic.probabilities,
            **groups,
            seed=seed,
        )
    for name, interval in found.items():
        least, most = _BOUNDS.get(name, (-np.inf, np.inf))
        row[name] |= {"low": max(interval.low, least), "high": min(interval.high, most)}
    return row


def _is_one_row_a_volume(features: FeatureSet) -> bool:
    """Neighbours of slices are mostly slices of the same volume: manifolds are measured in 3D only."""
    return features.num_volumes == len(features.values)


def _warnings(real: FeatureSet, synthetic: FeatureSet) -> list[str]:
    counts = (real.num_volumes, synthetic.num_volumes)
    found = fidelity.check_count("fid", *counts)
    rank = fidelity.check_count("fid", len(real.values), len(synthetic.values), real.values.shape[1])
    found += [warning for warning in rank if warning not in found]
    found += fidelity.check_count("kid", *counts)
    if _is_one_row_a_volume(synthetic):
        found += fidelity.check_count("precision_recall", *counts)
    if synthetic.probabilities is not None:
        found += fidelity.check_count("inception_score", *counts)
    return found
