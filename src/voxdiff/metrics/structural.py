"""Structural similarity in 3D (SSIM, Wang 2004; MS-SSIM, Wang 2003) and the local maps that its relatives are made of.

Conventions: Gaussian window of 11 voxels a side and sigma 1.5 voxels, cut to what fits whole into the grid (no padding:
a map is `kernel_size - 1` voxels smaller on each axis), population variances, c1 = (0.01 L)², c2 = (0.03 L)² and
c3 = c2 / 2 with the data range L, so that contrast and structure are one term. Computed in float64. Intensities are
counted from the low end of the data range: the luminance term has no meaning for negative values (shift HU first).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict

import torch
import torch.nn.functional as F

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five scales (Wang 2003); with fewer scales, the first ones, made to sum to 1."""

ScaleScore = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, bool], torch.Tensor]


class SSIMWindow(NamedTuple):
    """What a local map depends on: the range of possible values, the window's voxels a side, its sigma in voxels."""

    data_range: float
    kernel_size: int = 11
    sigma: float = 1.5


class MSSSIMSettings(TypedDict):
    """Number of scales, the window's voxels a side, its sigma in voxels."""

    scales: int
    kernel_size: int
    sigma: float


def ssim(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    data_range: float,
    mask: torch.Tensor | None = None,
    kernel_size: int = 11,
    sigma: float = 1.5,
) -> torch.Tensor:
    """Structural similarity: mean of the local map over channels and window centres.

    Args:
        x: (batch, channels, x, y, z), intensities from the low end of the data range.
        y: the same shape.
        data_range: largest minus smallest possible value.
        mask: boolean, (x, y, z) or anything that broadcasts to `x`: only windows centred inside it count. They still
            see the voxels around it.
        kernel_size: voxels a side of the window, odd.
        sigma: width of the window in voxels.

    Returns:
        (batch,) in float64, 1 for equal volumes.

    Raises:
        ValueError: the shapes differ, a value is not finite, the data range is not positive, the window does not fit,
            or the mask holds no window centre.
    """
    x, y, mask = check_pair(x, y, data_range=data_range, mask=mask)
    check_window(x.shape, kernel_size)
    window = SSIMWindow(data_range, kernel_size, sigma)
    return mean_inside(luminance_map(x, y, window) * contrast_structure_map(x, y, window), mask)


def multiscale_ssim(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    data_range: float,
    mask: torch.Tensor | None = None,
    scales: int = 5,
    kernel_size: int = 11,
    sigma: float = 1.5,
) -> torch.Tensor:
    """MS-SSIM that can be restricted to a mask; without one, :func:`voxdiff.metrics.similarity.ms_ssim` in float64.

    Args, returns and errors are those of :func:`ssim`; `scales` is 1 to 5, each halves the grid (2x2x2 means). A mask
    keeps a coarse voxel if at least half of it lies inside.
    """
    x, y, mask = check_pair(x, y, data_range=data_range, mask=mask)
    check_window(x.shape, kernel_size, scales)
    window = SSIMWindow(data_range, kernel_size, sigma)

    def score(x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None, is_last: bool) -> torch.Tensor:
        values = contrast_structure_map(x, y, window)
        return mean_inside(values * luminance_map(x, y, window) if is_last else values, mask)

    return combine_scales(x, y, mask, scales, score)


def ms_ssim_settings(shape: Sequence[int]) -> MSSSIMSettings:
    """The largest number of scales that a grid admits with the largest standard window, for :func:`multiscale_ssim`.

    The window is 11 voxels (sigma 1.5) if two scales fit with it, else 7 (sigma 1), else 5 (sigma 1); sides of 5 to 9
    leave one scale. So 64³ gives 3 scales of 11, 128³ 4, 176³ and more all 5. Values with other settings are not
    comparable: report them. As windows must fit whole, the coarsest scale looks at the middle only (at 64³ its 6³
    windows are centred in the middle 24³ voxels).

    Args:
        shape: of the volumes; the last three sizes count.

    Raises:
        ValueError: a side is shorter than 5 voxels.
    """
    side = min(shape[-3:])
    for kernel_size, sigma, least in ((11, 1.5, 2), (7, 1.0, 2), (5, 1.0, 1)):
        # MONAI asks for 9 windows a side at 4 scales where 8 would do: what is picked here runs in both.
        factors = {1: 1, 2: 2, 3: 4, 4: 9, 5: 16}
        scales = max((count for count, factor in factors.items() if side >= factor * kernel_size), default=0)
        if scales >= least:
            return {"scales": scales, "kernel_size": kernel_size, "sigma": sigma}
    raise ValueError(f"A grid of {tuple(shape[-3:])} is too small for MS-SSIM; give at least 5 voxels a side.")


def luminance_map(x: torch.Tensor, y: torch.Tensor, window: SSIMWindow) -> torch.Tensor:
    """Likeness of the local means, (batch, channels, x, y, z), `kernel_size - 1` smaller a side than the volumes."""
    c1 = (0.01 * window.data_range) ** 2
    mean_x, mean_y = (_windowed_mean(volume, window) for volume in (x, y))
    return (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)


def contrast_structure_map(x: torch.Tensor, y: torch.Tensor, window: SSIMWindow) -> torch.Tensor:
    """Likeness of the local deviations from the mean, (batch, channels, x, y, z), as small as `luminance_map`."""
    c2 = (0.03 * window.data_range) ** 2
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = (
        _windowed_mean(volume, window) for volume in (x, y, x * x, y * y, x * y)
    )
    variances = (mean_xx - mean_x * mean_x) + (mean_yy - mean_y * mean_y)
    return (2 * (mean_xy - mean_x * mean_y) + c2) / (variances + c2)


def combine_scales(
    x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None, scales: int, score: ScaleScore
) -> torch.Tensor:
    """Product over scales of `score(x, y, mask, is_last) ** weight`, with the weights of MS-SSIM made to sum to 1.

    A negative score counts as 0, as a power of it is undefined. Each scale takes the 2x2x2 means of the one before; an
    odd last plane is dropped. Returns (batch,).
    """
    weights = MS_SSIM_WEIGHTS[:scales]
    product = x.new_ones(len(x))
    for scale, weight in enumerate(weights):
        if scale:
            x, y = F.avg_pool3d(x, 2), F.avg_pool3d(y, 2)
            mask = None if mask is None else F.avg_pool3d(mask.to(x.dtype), 2) >= 0.5
        product = product * score(x, y, mask, scale == scales - 1).relu() ** (weight / sum(weights))
    return product


def mean_inside(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of a map over channels and the window centres inside a mask on the grid of the volumes: (batch,).

    Raises:
        ValueError: a mask holds no window centre.
    """
    inside = centres_inside(mask, values)
    return (values * inside).flatten(1).sum(1) / inside.flatten(1).sum(1)


def centres_inside(mask: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
    """Which windows of the map `values` have their centre in a mask on the grid of the volumes; all without a mask.

    Raises:
        ValueError: a channel of the mask holds no window centre.
    """
    if mask is None:
        return torch.ones_like(values, dtype=torch.bool)
    inside = window_centres(mask, values)
    if not inside.flatten(2).any(2).all():
        raise ValueError(
            f"The mask holds no voxel whose window fits into the grid of {tuple(mask.shape[2:])} voxels; give a mask "
            "that reaches further inside, or a smaller window or fewer scales."
        )
    return inside


def window_centres(volume: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The part of `volume` that lies at the centres of the windows of the map `values`."""
    radius = (volume.shape[-1] - values.shape[-1]) // 2
    inner = slice(radius, -radius or None)
    return volume[..., inner, inner, inner]


def check_pair(
    x: torch.Tensor, y: torch.Tensor, *, data_range: float, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Both volumes in float64, and the mask in their shape.

    Raises:
        ValueError: as for :func:`ssim`.
    """
    if x.ndim != 5 or x.shape != y.shape:
        raise ValueError(
            f"The volumes have the shapes {tuple(x.shape)} and {tuple(y.shape)}; give two of the same shape "
            "(batch, channels, x, y, z)."
        )
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise ValueError("A volume holds NaN or infinite voxels; pairs are compared on finite values only.")
    if not (data_range > 0 and math.isfinite(data_range)):
        raise ValueError(f"data_range is {data_range}; give the positive width of the range of possible values.")
    if mask is not None:
        mask = _full_mask(mask, x.shape)
    return x.double(), y.double(), mask


def check_window(shape: Sequence[int], kernel_size: int, scales: int = 1) -> None:
    """Refuse settings that the grid of `shape` does not admit.

    Raises:
        ValueError: the window is even or does not fit at the coarsest scale, or the number of scales is not 1 to 5.
    """
    if not 1 <= scales <= len(MS_SSIM_WEIGHTS):
        raise ValueError(f"scales is {scales}; give 1 to {len(MS_SSIM_WEIGHTS)}.")
    side = min(shape[-3:]) // 2 ** (scales - 1)
    if kernel_size < 1 or kernel_size % 2 == 0 or kernel_size > side:
        raise ValueError(
            f"kernel_size is {kernel_size} on a grid of {tuple(shape[-3:])} with {scales} scale(s); give an odd number "
            f"up to {side}, or fewer scales."
        )


def _full_mask(mask: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    if mask.dtype != torch.bool:
        raise ValueError(f"The mask is of type {mask.dtype}; give booleans, such as `mask > 0`.")
    try:
        full = mask.broadcast_to(shape)
    except RuntimeError as error:
        raise ValueError(
            f"The mask has the shape {tuple(mask.shape)}; give one that broadcasts to the volumes' {tuple(shape)}."
        ) from error
    if not full.flatten(2).any(2).all():
        raise ValueError("The mask is empty; give one with at least one voxel in every volume.")
    return full


def _windowed_mean(volume: torch.Tensor, window: SSIMWindow) -> torch.Tensor:
    """Gaussian mean over every window that fits into the grid."""
    size = window.kernel_size
    offsets = torch.arange(size, dtype=volume.dtype, device=volume.device) - (size - 1) / 2
    weights = torch.exp(-((offsets / window.sigma) ** 2) / 2)
    weights = weights / weights.sum()
    # As products with banded matrices: ten times faster than `conv3d` on a CPU. `tensordot` moves the axis that it
    # filters to the end, so that three times the first leave x, y, z in order.
    for _ in range(3):
        side = volume.shape[2]
        band = volume.new_zeros(side, side - size + 1)
        for offset, weight in enumerate(weights):
            band.diagonal(-offset).fill_(weight)
        volume = torch.tensordot(volume, band, dims=([2], [0]))
    return volume
