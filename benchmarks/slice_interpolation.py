"""Missing slices for `bench_slice_conditioned.py`: sampled or interpolated, and held against the real ones."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import make_interp_spline

from voxdiff import SliceConditionedPipeline
from voxdiff.metrics.structural import ssim
from voxdiff.volumes import atomic_path

LINEAR, CUBIC, ONE, MEAN = "linear", "cubic", "one sample", "mean of samples"
SPREAD_EDGES = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, np.inf)
"""Bins of the spread of samples, in parts of the intensity range."""


def restore_case(
    pipe: SliceConditionedPipeline, volume: torch.Tensor, factor: int, *, samples: int, steps: int, path: Path
) -> dict[str, Any]:
    """What :func:`measure_case` finds where every `factor`-th slice of ``(x, y, z)`` is kept; kept in the file."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    axis = pipe.config["slice_axis"]
    volume, output = restore(pipe, volume, factor, samples=samples, steps=steps)
    found = measure_case(volume.movedim(axis, -1), output.volumes[:, 0].movedim(1 + axis, -1), factor)
    found["seconds"] = output.provenance[0]["seconds"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return found


def restore(
    pipe: SliceConditionedPipeline, volume: torch.Tensor, factor: int, *, samples: int, steps: int, seed: int = 0
) -> tuple[torch.Tensor, Any]:
    """The volume ``(x, y, z)`` up to its last slice that is kept, and what the pipeline makes of every `factor`-th one."""
    axis = pipe.config["slice_axis"]
    depth = (volume.shape[axis] - 1) // factor * factor + 1
    volume = volume.narrow(axis, 0, depth)
    output = pipe(
        volume=volume,
        known_indices=range(0, depth, factor),
        first_position=None if pipe.unet.config["position_embedding"] == "relative" else 0,
        num_inference_steps=steps,
        batch_size=samples,
        generator=[torch.Generator().manual_seed(seed + place) for place in range(samples)],
        output_type="pt",
    )
    return volume, output


def measure_case(real: torch.Tensor, samples: torch.Tensor, factor: int) -> dict[str, Any]:
    """PSNR and SSIM of the missing slices by every method, and the spread of the samples against their error.

    Args:
        real: ``(x, y, slices)`` in [0, 1], the last slice among those that are kept.
        samples: ``(samples, x, y, slices)``.
        factor: Every which slice is kept.
    """
    missing = torch.arange(real.shape[-1]) % factor != 0
    answers = {LINEAR: [interpolate(real, factor, 1)], CUBIC: [interpolate(real, factor, 3)]}
    answers |= {ONE: list(samples), MEAN: [samples.mean(0)]}
    methods = {}
    for name, volumes in answers.items():
        scores = [_scores(real, volume, missing) for volume in volumes]
        methods[name] = {metric: float(np.mean([score[metric] for score in scores])) for metric in scores[0]}
    return {"methods": methods, "calibration": sum_by_spread(real[..., missing], samples[..., missing])}


def sum_by_spread(real: torch.Tensor, samples: torch.Tensor) -> dict[str, list[float]]:
    """Number of voxels, variance of the samples and squared error of their mean, summed in bins of spread.

    A voxel whose few samples lie close together by chance would seem to err much. So one half of the samples chooses the
    bin, and the other is measured in it; then they change places.
    """
    half = len(samples) // 2
    found = {name: np.zeros(len(SPREAD_EDGES) - 1) for name in ("voxels", "variance", "squared_error")}
    for choosing, measured in ((samples[:half], samples[half : 2 * half]), (samples[half : 2 * half], samples[:half])):
        bins = np.digitize(choosing.std(0).flatten().double().numpy(), SPREAD_EDGES[1:-1])
        variance = measured.var(0).flatten().double().numpy()
        error = (measured.mean(0) - real).flatten().double().numpy()
        for name, values in (("voxels", np.ones_like(error)), ("variance", variance), ("squared_error", error**2)):
            found[name] += np.bincount(bins, values, minlength=len(SPREAD_EDGES) - 1)
    return {"half": half, **{name: values.tolist() for name, values in found.items()}}


def interpolate(real: torch.Tensor, factor: int, degree: int) -> torch.Tensor:
    """Splines along the last axis through every `factor`-th slice, clipped to [0, 1]."""
    places = np.arange(0, real.shape[-1], factor)
    spline = make_interp_spline(places, real[..., ::factor].double().numpy(), k=degree, axis=-1)
    return torch.from_numpy(spline(np.arange(real.shape[-1]))).to(real).clamp(0, 1)


def calibrate(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """For each bin of spread, and for all together: root mean square spread and error of the mean, and their ratio.

    The truth lies about the mean of n samples (half of all) with 1 + 1/n times their variance if it is a further sample;
    the spread is given with that factor, so that a ratio of error to spread of 1 is calibrated.
    """
    sums = {
        name: np.sum([case["calibration"][name] for case in cases], axis=0)
        for name in ("voxels", "variance", "squared_error")
    }
    factor = 1 + 1 / cases[0]["calibration"]["half"]
    rows = []
    edges = [*itertools.pairwise(SPREAD_EDGES), (0.0, np.inf)]
    for place, (low, high) in enumerate(edges):
        chosen = slice(place, place + 1) if place < len(edges) - 1 else slice(None)
        voxels, variance, squared = (float(sums[name][chosen].sum()) for name in sums)
        if voxels:
            spread, error = (factor * variance / voxels) ** 0.5, (squared / voxels) ** 0.5
            share = voxels / float(sums["voxels"].sum())
            row = {"low": low, "high": high, "share": share, "spread": spread, "error": error}
            rows.append(row | {"ratio": error / spread if spread else None})
    return [row | {"high": None} if row["high"] == np.inf else row for row in rows]


def _scores(real: torch.Tensor, found: torch.Tensor, missing: torch.Tensor) -> dict[str, float]:
    squared = (real - found)[..., missing].double().square().mean().item()
    mask = missing.expand(real.shape)
    similar = ssim(real[None, None], found[None, None], data_range=1.0, mask=mask).item()
    return {"psnr": -10 * float(np.log10(max(squared, 1e-12))), "ssim": similar}
