"""Tables of `bench_slice_conditioned.py`."""

from collections.abc import Mapping
from typing import Any

from record import markdown_table

_COLUMNS = {
    "ms_ssim": ("MS-SSIM", 4),
    "mmd": ("MMD", 3),
    "fid_axial": ("FID-A", 3),
    "fid_coronal": ("FID-C", 3),
    "fid_sagittal": ("FID-S", 3),
    "first": ("first", 1),
    "first_distance": ("distance", 2),
    "last": ("last", 1),
    "last_distance": ("distance", 2),
    "jump": ("jump", 3),
    "stage_jump": ("in stages", 3),
    "seam_jump": ("at seams", 3),
}
_COUNTS = {"calls": 0, "slices": 0, "seconds": 1}


def sets_table(sets: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a set; intervals in brackets."""
    header = ["set", "volumes", *(heading for heading, _ in _COLUMNS.values()), *_COUNTS]
    rows = [
        [
            name,
            str(found["volumes"]),
            *(_cell(found.get(column), digits) for column, (_, digits) in _COLUMNS.items()),
            *(f"{found[name]:.{digits}f}" if name in found else "-" for name, digits in _COUNTS.items()),
        ]
        for name, found in sets.items()
    ]
    return markdown_table(header, rows)


def interpolation_table(found: Mapping[str, Any]) -> str:
    """A row a method and factor."""
    rows = [
        [f"{name}, 1 of {factor} kept", _cell(scores["psnr"], 2), _cell(scores["ssim"], 4)]
        for factor, result in found.items()
        for name, scores in result["methods"].items()
    ]
    return markdown_table(["missing slices", "PSNR dB", "SSIM"], rows)


def calibration_table(found: Mapping[str, Any]) -> str:
    """A row a bin of spread and factor; the last of a factor holds all voxels."""
    rows = []
    for factor, result in found.items():
        for row in result["calibration"]:
            bounds = f"{row['low']:g} to {row['high']:g}" if row["high"] is not None else f"from {row['low']:g}"
            numbers = [f"{row[name]:.4f}" for name in ("share", "spread", "error")]
            ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
            rows.append([f"1 of {factor} kept, spread {bounds}", *numbers, ratio])
    return markdown_table(["voxels", "share", "expected error", "error of the mean", "error / expected"], rows)


def _cell(found: Mapping[str, float] | None, digits: int) -> str:
    if found is None:
        return "-"
    if "low" not in found:
        return f"{found['mean']:.{digits}f}"
    return f"{found['mean']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"
