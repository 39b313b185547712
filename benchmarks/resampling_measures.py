"""What `bench_resampling.py` measures: spread of intensities, effects of an edit, nearness to owner and donor, cost."""

import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from voxdiff.metrics.copies import CopyMatches, copy_distances
from voxdiff.metrics.intervals import jackknife_interval, mean_interval
from voxdiff.metrics.privacy import memorisation_test

_BLOCKS = 20


def region_medians(
    volumes: Sequence[torch.Tensor], masks: Sequence[np.ndarray], regions: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """Region -> the median intensity of each volume in it, ``(volumes,)``; NaN where the mask does not have it.

    Args:
        volumes: ``(1, x, y, z)`` in [0, 1].
        masks: ``(x, y, z)`` each.
        regions: Name -> labels.
    """
    medians = {}
    for name, labels in regions.items():
        inside = [np.isin(mask, labels) for mask in masks]
        medians[name] = np.array(
            [
                np.median(volume[0].numpy()[where]) if where.any() else np.nan
                for volume, where in zip(volumes, inside, strict=True)
            ]
        )
    return medians


def spread(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Standard deviations across subjects, and the second over the first with its interval (jackknife over subjects).

    Subjects without the region, NaN, are left out.
    """
    pairs = np.stack([before, after], axis=1)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    ratio = jackknife_ratio(pairs)
    return {"before": float(pairs[:, 0].std(ddof=1)), "after": float(pairs[:, 1].std(ddof=1)), **ratio, "n": len(pairs)}


def jackknife_ratio(pairs: np.ndarray) -> dict[str, float]:
    """Ratio of the standard deviations of two columns ``(subjects, 2)``; the interval is that of its logarithm."""
    nothing = np.zeros((len(pairs), 1))
    interval = jackknife_interval(
        lambda rows, _: float(np.log(rows[:, 1].std() / rows[:, 0].std())), pairs, nothing, num_blocks=_BLOCKS
    )
    ends = {"ratio": interval.estimate, "low": interval.low, "high": interval.high}
    return {name: float(np.exp(value)) for name, value in ends.items()}


def edit_effects(inside: Sequence[float], outside: Sequence[float]) -> dict[str, Any]:
    """Mean absolute change inside and outside edited regions, and the share of edits that change the inside more."""
    columns = {"inside": np.asarray(inside), "outside": np.asarray(outside)}
    found: dict[str, Any] = {}
    for name, values in columns.items():
        interval = mean_interval(values)
        found[name] = {"mean": interval.estimate, "low": interval.low, "high": interval.high}
    return found | {"ratio": float(np.mean(columns["inside"] / columns["outside"])), "n": len(columns["inside"])}


@dataclass(frozen=True)
class Nearness:
    """How near the volumes of a set are to certain real ones.

    Attributes:
        to_owner: Copy distance to the real image of the mask's owner.
        to_donor: The same of the informed slice's donor; empty where there is none.
        matches: Against all references.
    """

    to_owner: np.ndarray
    to_donor: np.ndarray
    matches: CopyMatches


def measure_nearness(
    volumes: Sequence[torch.Tensor],
    owners: Sequence[str],
    donors: Sequence[str | None],
    references: Mapping[str, torch.Tensor],
) -> Nearness:
    """Copy distances of volumes ``(1, x, y, z)`` to all references and to two of them.

    Args:
        volumes: The set.
        owners: Whose mask each has, a key of `references`.
        donors: Whose slice each has, or None.
        references: Subject -> real volume.
    """
    to_owner = [_distance(volume, references[name]) for volume, name in zip(volumes, owners, strict=True)]
    to_donor = [
        _distance(volume, references[name]) for volume, name in zip(volumes, donors, strict=True) if name is not None
    ]
    matches = copy_distances(volumes, list(references.values()))
    return Nearness(np.array(to_owner), np.array(to_donor), matches)


def describe_nearness(
    found: Nearness, owners: Sequence[str], donors: Sequence[str | None], names: Sequence[str], heldout: CopyMatches
) -> dict[str, Any]:
    """Distances, how often the nearest reference is the owner or the donor, and how many volumes count as copies.

    Args:
        found: Of the set.
        owners: Whose mask each volume has.
        donors: Whose slice, or None.
        names: Of the references.
        heldout: Of real subjects that are not among the references; they set the threshold.
    """
    nearest = [names[place] for place in found.matches.nearest.tolist()]
    test = memorisation_test(found.matches.ratios.numpy(), heldout.ratios.numpy())
    has_donor = [name is not None for name in donors]
    return {
        "volumes": len(nearest),
        "to_nearest": float(found.matches.distances.median()),
        "to_owner": float(np.median(found.to_owner)),
        "to_donor": float(np.median(found.to_donor)) if len(found.to_donor) else None,
        "nearest_is_owner": float(np.mean([near == own for near, own in zip(nearest, owners, strict=True)])),
        "nearest_is_donor": (
            float(np.mean([near == donor for near, donor in zip(nearest, donors, strict=True)]))
            if any(has_donor)
            else None
        ),
        "copies": len(test.copies),
        "copies_of_owner": sum(nearest[place] == owners[place] for place in test.copies),
        "copies_of_donor": sum(nearest[place] == donors[place] for place in test.copies),
        "threshold": test.threshold,
        "auc": test.auc,
        "p_value": test.p_value,
    }


def _distance(volume: torch.Tensor, other: torch.Tensor) -> float:
    return float(copy_distances([volume], [other]).distances[0])


@dataclass
class Calls:
    """Calls of a network while it was watched.

    Attributes:
        sizes: Windows in each call.
        seconds: In all of them.
    """

    sizes: list[int] = field(default_factory=list)
    seconds: float = 0.0


@contextmanager
def counted(network: nn.Module):
    """Count the calls of a network, and the seconds that they take."""
    calls, begun = Calls(), [0.0]

    def begin(module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
        begun[0] = time.perf_counter()

    def end(module: nn.Module, arguments: tuple, keywords: dict[str, Any], output: Any) -> None:
        calls.seconds += time.perf_counter() - begun[0]
        calls.sizes.append(len(arguments[0] if arguments else keywords["sample"]))

    hooks = [
        network.register_forward_pre_hook(begin, with_kwargs=True),
        network.register_forward_hook(end, with_kwargs=True),
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
