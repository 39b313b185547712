"""How near synthetic volumes come to the real ones they belong to: one row a case, a summary, and two methods compared.

Volumes stay in their physical unit throughout: MAE comes out in it (HU for CT), MSE in its square, and PSNR and the
structural metrics take the width of the stated data range, never the largest value of the image at hand.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxdiff.metrics.gradient_similarity import four_g_ssim, four_ms_g_ssim
from voxdiff.metrics.intervals import mean_interval
from voxdiff.metrics.structural import check_pair, ms_ssim_settings, multiscale_ssim, ssim
from voxdiff.volumes import atomic_path

Case = Mapping[str, Any]
"""The measurements of one case: its id under `case`, its metrics under their names; other text is carried along."""


def paired_metrics(
    real: np.ndarray | torch.Tensor,
    synthetic: np.ndarray | torch.Tensor,
    *,
    data_range: float,
    low: float = 0.0,
    mask: np.ndarray | torch.Tensor | None = None,
) -> dict[str, float]:
    """Measure one synthetic volume against its real one. Further metrics (LPIPS, Dice) can be added to the result.

    Args:
        real: (x, y, z) or (channels, x, y, z) in a physical unit, inside the data range (clip CT to its window first).
        synthetic: the same shape and unit.
        data_range: width of the data range in that unit: 2000 for a window of -1000 to 1000 HU, 1 for [0, 1].
        low: lower end of the data range. The structural metrics see intensities counted from it: SSIM's luminance term
            has no meaning for negative values.
        mask: boolean, (x, y, z): where to measure. The structural metrics count the windows centred inside it.

    Returns:
        `mse`, `mae`, `psnr` (dB, infinite for equal volumes), `ssim` (window of 11 voxels, sigma 1.5), `ms_ssim`,
        `four_g_ssim`, `four_ms_g_ssim`, and `ms_ssim_scales`, the number of scales of both multi-scale metrics: it is
        less than 5 on small grids, by :func:`voxdiff.metrics.structural.ms_ssim_settings`, and values with different
        numbers are not comparable.

    Raises:
        ValueError: the shapes differ, a side is shorter than 11 voxels, a value is not finite, the data range is not
            positive or does not hold the real volume, or the mask is empty.
    """
    x, y = (_batch_of_one(volume) for volume in (real, synthetic))
    inside = None if mask is None else torch.as_tensor(mask)
    x, y, inside = check_pair(x, y, data_range=data_range, mask=inside)
    _check_range(x, low, data_range)
    difference = x - y if inside is None else (x - y)[inside]
    mse = difference.square().mean().item()
    x, y = x - low, y - low
    settings = ms_ssim_settings(x.shape)
    return {
        "mse": mse,
        "mae": difference.abs().mean().item(),
        "psnr": 10 * math.log10(data_range**2 / mse) if mse else math.inf,
        "ssim": ssim(x, y, data_range=data_range, mask=inside).item(),
        "ms_ssim": multiscale_ssim(x, y, data_range=data_range, mask=inside, **settings).item(),
        "four_g_ssim": four_g_ssim(x, y, data_range=data_range, mask=inside).item(),
        "four_ms_g_ssim": four_ms_g_ssim(x, y, data_range=data_range, mask=inside, **settings).item(),
        "ms_ssim_scales": float(settings["scales"]),
    }


def summarize(cases: Sequence[Case], *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Mean and spread over cases of every metric.

    Args:
        cases: one mapping a case, all with the same metrics; text (`case`, a subgroup) is passed over.
        seed: of the bootstrap over cases, :func:`voxdiff.metrics.intervals.mean_interval`.

    Returns:
        For each metric `mean`, `sd` (of a case, n - 1), `low` and `high` (95 % interval of the mean), `n` (cases), and
        `infinite` (those among them that are infinite: the PSNR of equal volumes). The statistics are those of the
        finite values; where there is none, mean, low and high are infinite and sd is 0. With one finite value sd, low
        and high are undefined: NaN.

    Raises:
        ValueError: there is no case, a value is NaN, or the cases have different metrics.
    """
    return {metric: _statistics(_column(cases, metric), seed) for metric in _metrics(cases)}


def compare_paired(cases_a: Sequence[Case], cases_b: Sequence[Case], *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Method A minus method B on the same cases, for every metric.

    Args:
        cases_a: one mapping a case with its id under `case`, in any order.
        cases_b: the same cases and metrics.
        seed: of the bootstrap over cases.

    Returns:
        For each metric `mean` (of the differences A - B), `sd`, `low`, `high`, `n`, `infinite` as :func:`summarize`
        gives them for the differences (two infinite values differ by 0), and `p_value` of the two-sided Wilcoxon
        signed-rank test (1 where no case differs). No correction is made for the number of metrics.

    Raises:
        ValueError: the cases or the metrics differ, an id is missing or occurs twice, or a value is NaN.
        ModuleNotFoundError: scipy is not installed.
    """
    rows_a, rows_b = _by_id(cases_a), _by_id(cases_b)
    if rows_a.keys() != rows_b.keys():
        odd = sorted(rows_a.keys() ^ rows_b.keys())
        raise ValueError(
            f"The two methods were not measured on the same cases: {', '.join(odd[:5])} ({len(odd)} in all) belong to "
            "one only; give both the same cases."
        )
    ids, metrics = sorted(rows_a), _metrics([*cases_a, *cases_b])
    result = {}
    for metric in metrics:
        a, b = (np.array([float(rows[case][metric]) for case in ids]) for rows in (rows_a, rows_b))
        differences = np.subtract(a, b, out=np.zeros_like(a), where=a != b)
        result[metric] = {**_statistics(differences, seed), "p_value": _wilcoxon(differences)}
    return result


def write_csv(cases: Sequence[Case], path: str | Path) -> None:
    """One row a case, one column a key, in full precision, written through a temporary name.

    Raises:
        ValueError: there is no case, a value is NaN, or the cases have different metrics.
    """
    _metrics(cases)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(cases[0]))
        writer.writeheader()
        writer.writerows(cases)


def _batch_of_one(volume: np.ndarray | torch.Tensor) -> torch.Tensor:
    values = torch.as_tensor(volume)
    if values.ndim not in (3, 4):
        raise ValueError(f"A volume has the shape {tuple(values.shape)}; give (x, y, z) or (channels, x, y, z).")
    return values.reshape(1, -1, *values.shape[-3:])


def _check_range(real: torch.Tensor, low: float, data_range: float) -> None:
    tolerance = 1e-6 * data_range
    lowest, highest = real.min().item(), real.max().item()
    if lowest < low - tolerance or highest > low + data_range + tolerance:
        raise ValueError(
            f"The real volume goes from {lowest:g} to {highest:g}, outside the data range {low:g} to "
            f"{low + data_range:g}; clip both volumes to the range, or state theirs with `low` and `data_range`."
        )


def _metrics(cases: Sequence[Case]) -> list[str]:
    """Names of the metrics that every case has."""
    if not cases:
        raise ValueError("There is no case to report; give at least one.")
    for case in cases:
        if case.keys() != cases[0].keys():
            odd = sorted(case.keys() ^ cases[0].keys())
            raise ValueError(f"Not every case has the metrics {', '.join(odd)}; measure all cases alike.")
    metrics = [name for name, value in cases[0].items() if name != "case" and not isinstance(value, str)]
    for metric in metrics:
        if np.isnan(_column(cases, metric)).any():
            raise ValueError(f"A case has NaN for {metric}; leave that case or that metric out, and say so.")
    return metrics


def _column(cases: Sequence[Case], metric: str) -> np.ndarray:
    return np.array([float(case[metric]) for case in cases])


def _by_id(cases: Sequence[Case]) -> dict[str, Case]:
    rows = {str(case["case"]): case for case in cases if "case" in case}
    if len(rows) != len(cases):
        raise ValueError(f"{len(cases)} cases have {len(rows)} different ids; give each its own id under `case`.")
    return rows


def _statistics(values: np.ndarray, seed: int) -> dict[str, float]:
    finite = values[np.isfinite(values)]
    counts = {"n": len(values), "infinite": len(values) - len(finite)}
    if not len(finite):
        mean = float(values.mean())
        return {"mean": mean, "sd": 0.0, "low": mean, "high": mean, **counts}
    sd = low = high = math.nan
    if len(finite) > 1:
        interval = mean_interval(finite, seed=seed)
        sd, low, high = finite.std(ddof=1), interval.low, interval.high
    return {"mean": float(finite.mean()), "sd": float(sd), "low": low, "high": high, **counts}


def _wilcoxon(differences: np.ndarray) -> float:
    try:
        from scipy.stats import wilcoxon
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Comparing methods needs scipy: pip install voxdiff[metrics].") from error
    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0
