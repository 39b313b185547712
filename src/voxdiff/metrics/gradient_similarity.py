"""Structural similarity that looks at edges: G-SSIM, and its means over four kinds of tissue boundary and texture.

After Chen 2006 (G-SSIM), Li and Bovik 2010 (4-SSIM) and Renieblas 2017, who found 4-G-SSIM and 4-MS-G-SSIM closest to
radiologists, carried over to 3D. The papers were published for slices; where they leave a choice, ours is:

- Gradients: 3D Sobel masks on the volume, its outermost voxels repeated outside; magnitude = root of the summed squares
  of the three directions. The masks are scaled so that a volume that is constant along one axis has the magnitudes of
  the plain 2D Sobel masks (8 for a ramp of 1 a voxel), which keeps c2 in the proportion that it has on slices. In voxel
  units: an anisotropic spacing is not corrected for.
- G-SSIM map: luminance term of the volumes times the contrast-structure term of their gradient magnitudes, with the
  windows and the constants of :mod:`voxdiff.metrics.structural` (L is the range of the volume, not of its gradient).
- Regions: by the magnitudes at the windows' centres; thresholds are shares of the largest magnitude of the whole real
  volume, inside and outside a mask.
- Weights: a quarter a region. Empty regions are left out and the others share their weight equally: the score is the
  mean of the means of the regions that hold a voxel.
- Scales: regions are drawn anew on each scale, a scale's score is the mean over its regions (of the contrast-structure
  term; times the luminance term on the last scale), and scores are multiplied with the weights of MS-SSIM.
- Channels have their own regions; a scale's score is the mean over channels.
"""

import torch
import torch.nn.functional as F

from voxdiff.metrics.structural import (
    SSIMWindow,
    centres_inside,
    check_pair,
    check_window,
    combine_scales,
    contrast_structure_map,
    luminance_map,
    mean_inside,
    window_centres,
)

REGIONS = ("preserved_edge", "changed_edge", "smooth", "texture")
"""Names of the labels 0 to 3 of :func:`four_regions`."""

EDGE_THRESHOLD = 0.12
SMOOTH_THRESHOLD = 0.06


def g_ssim(
    real: torch.Tensor,
    synthetic: torch.Tensor,
    *,
    data_range: float,
    mask: torch.Tensor | None = None,
    kernel_size: int = 11,
    sigma: float = 1.5,
) -> torch.Tensor:
    """Gradient structural similarity (Chen 2006): falls faster than SSIM where edges are blurred.

    Args:
        real: (batch, channels, x, y, z), intensities from the low end of the data range.
        synthetic: the same shape.
        data_range: largest minus smallest possible value.
        mask: boolean, (x, y, z) or anything that broadcasts to `real`: only windows centred inside it count.
        kernel_size: voxels a side of the Gaussian window, odd.
        sigma: width of the window in voxels.

    Returns:
        (batch,) in float64, 1 for equal volumes.

    Raises:
        ValueError: the shapes differ, a value is not finite, the data range is not positive, the window does not fit,
            or the mask holds no window centre.
    """
    real, synthetic, mask = check_pair(real, synthetic, data_range=data_range, mask=mask)
    check_window(real.shape, kernel_size)
    window = SSIMWindow(data_range, kernel_size, sigma)
    gradients = gradient_magnitude(real), gradient_magnitude(synthetic)
    values = luminance_map(real, synthetic, window) * contrast_structure_map(*gradients, window)
    return mean_inside(values, mask)


def four_ssim(
    real: torch.Tensor,
    synthetic: torch.Tensor,
    *,
    data_range: float,
    mask: torch.Tensor | None = None,
    kernel_size: int = 11,
    sigma: float = 1.5,
) -> torch.Tensor:
    """4-SSIM (Li and Bovik 2010): mean over the regions of the SSIM map. As :func:`g_ssim` in all else."""
    real, synthetic, mask = check_pair(real, synthetic, data_range=data_range, mask=mask)
    check_window(real.shape, kernel_size)
    window = SSIMWindow(data_range, kernel_size, sigma)
    values = luminance_map(real, synthetic, window) * contrast_structure_map(real, synthetic, window)
    return region_mean(values, four_regions(gradient_magnitude(real), gradient_magnitude(synthetic)), mask)


def four_g_ssim(
    real: torch.Tensor,
    synthetic: torch.Tensor,
    *,
    data_range: float,
    mask: torch.Tensor | None = None,
    kernel_size: int = 11,
    sigma: float = 1.5,
) -> torch.Tensor:
    """4-G-SSIM (Renieblas 2017): mean over the regions of the G-SSIM map. As :func:`g_ssim` in all else."""
    real, synthetic, mask = check_pair(real, synthetic, data_range=data_range, mask=mask)
    check_window(real.shape, kernel_size)
    return _four_g_score(real, synthetic, mask, SSIMWindow(data_range, kernel_size, sigma))


def four_ms_g_ssim(
    real: torch.Tensor,
    synthetic: torch.Tensor,
    *,
    data_range: float,
    mask: torch.Tensor | None = None,
    scales: int = 5,
    kernel_size: int = 11,
    sigma: float = 1.5,
) -> torch.Tensor:
    """4-MS-G-SSIM (Renieblas 2017): 4-G-SSIM on several scales. As :func:`g_ssim` in all else.

    `scales` is 1 to 5, each halves the grid; the value belongs to it (:func:`voxdiff.metrics.structural.ms_ssim_settings`
    picks what a grid admits). A mask keeps a coarse voxel if at least half of it lies inside.
    """
    real, synthetic, mask = check_pair(real, synthetic, data_range=data_range, mask=mask)
    check_window(real.shape, kernel_size, scales)
    window = SSIMWindow(data_range, kernel_size, sigma)

    def score(x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None, is_last: bool) -> torch.Tensor:
        return _four_g_score(x, y, mask, window, with_luminance=is_last)

    return combine_scales(real, synthetic, mask, scales, score)


def gradient_magnitude(volume: torch.Tensor) -> torch.Tensor:
    """Magnitude of the 3D Sobel gradient, the shape of `volume`: (batch, channels, x, y, z)."""
    padded = F.pad(volume, (1,) * 6, mode="replicate")
    along_x, along_y, along_z = (_sobel(padded, axis) for axis in (2, 3, 4))
    return (along_x**2 + along_y**2 + along_z**2).sqrt()


def four_regions(real_gradient: torch.Tensor, synthetic_gradient: torch.Tensor) -> torch.Tensor:
    """Which of :data:`REGIONS` each voxel belongs to, from gradient magnitudes (Li and Bovik 2010).

    With the edge threshold 0.12 and the smooth threshold 0.06 of the largest real magnitude: a preserved edge lies
    above the edge threshold in both volumes, a changed edge in one of them; smooth is below the smooth threshold in the
    real volume and no edge in the synthetic one; texture is the rest. A flat real volume has no smooth voxel (nothing
    lies below 0): it is texture where the synthetic one is flat too, and changed edge elsewhere.

    Args:
        real_gradient: (batch, channels, x, y, z).
        synthetic_gradient: the same shape.

    Returns:
        Labels 0 to 3 of the same shape.
    """
    largest = real_gradient.amax(dim=(2, 3, 4), keepdim=True)
    real_edge = real_gradient > EDGE_THRESHOLD * largest
    synthetic_edge = synthetic_gradient > EDGE_THRESHOLD * largest
    regions = torch.full_like(real_gradient, REGIONS.index("texture"), dtype=torch.uint8)
    regions[real_gradient < SMOOTH_THRESHOLD * largest] = REGIONS.index("smooth")  # unless an edge appears, below
    regions[real_edge != synthetic_edge] = REGIONS.index("changed_edge")
    regions[real_edge & synthetic_edge] = REGIONS.index("preserved_edge")
    return regions


def region_mean(values: torch.Tensor, regions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over the regions that hold a voxel of the mean of a map inside each: (batch,).

    Args:
        values: a map of windows, (batch, channels, x, y, z).
        regions: labels of :func:`four_regions` on the grid of the volumes.
        mask: boolean, the shape of `regions`.

    Raises:
        ValueError: the mask holds no window centre.
    """
    labels = window_centres(regions, values)
    inside = centres_inside(mask, values)
    total, occupied = values.new_zeros(values.shape[:2]), values.new_zeros(values.shape[:2])
    for label in range(len(REGIONS)):
        members = (labels == label) & inside
        count = members.sum(dim=(2, 3, 4))
        total += (values * members).sum(dim=(2, 3, 4)) / count.clamp(min=1)
        occupied += count > 0
    return (total / occupied).mean(1)


def _four_g_score(
    real: torch.Tensor,
    synthetic: torch.Tensor,
    mask: torch.Tensor | None,
    window: SSIMWindow,
    *,
    with_luminance: bool = True,
) -> torch.Tensor:
    gradients = gradient_magnitude(real), gradient_magnitude(synthetic)
    values = contrast_structure_map(*gradients, window)
    if with_luminance:
        values = values * luminance_map(real, synthetic, window)
    return region_mean(values, four_regions(*gradients), mask)


def _sobel(padded: torch.Tensor, axis: int) -> torch.Tensor:
    """Sobel derivative along one axis of a volume with a margin of one voxel."""
    for direction in (2, 3, 4):
        length = padded.shape[direction] - 2
        before, here, after = (padded.narrow(direction, start, length) for start in range(3))
        padded = after - before if direction == axis else (before + 2 * here + after) / 2
    return padded
