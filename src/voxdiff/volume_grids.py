"""Voxel grids in the world: orientation codes, the grid a model works on, and bringing a volume from grid to grid.

An affine maps voxel indices to world millimetres in the NIfTI convention: x to the right, y to anterior, z to superior.
Every change of grid, there and back, is one call of `regrid` with the matrix that maps the indices of the wanted grid
to the indices of the grid at hand. Where that matrix only reorders, flips and shifts by whole voxels, values are copied
bit for bit; otherwise they are interpolated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

_DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
# Two grids that differ by less than this anywhere (in voxels) are one grid; it absorbs the rounding of stored affines.
_SAME_VOXEL = 0.01
# Less than this part of a voxel does not earn a voxel of its own at the far end of a resampled axis.
_SLIVER = 0.05
# Output voxels interpolated at a time: bounds the memory taken by sampling coordinates.
_SLAB_VOXELS = 1 << 21

Affine = tuple[tuple[float, ...], ...]
Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class VolumeGeometry:
    """What `VolumeProcessor.preprocess` did to a volume, enough for `postprocess` to undo it.

    Attributes:
        shape: The input's own grid (x, y, z).
        affine: The input's own affine, 4 x 4.
        model_shape: The grid the network sees, in the model's orientation.
        model_affine: Where that grid lies in the world.
        low: Intensity, in the input's unit, that became the bottom of the value range.
        high: Intensity, in the input's unit, that became the top of the value range.
        background: Value, in the processor's output unit, of the voxels that the model's grid does not cover.
        dtype: The input's data type.
        space_code: NIfTI code of the space the affine leads to (1 scanner, 2 aligned, 4 MNI152, ...).
    """

    shape: Shape
    affine: Affine
    model_shape: Shape
    model_affine: Affine
    low: float
    high: float
    background: float
    dtype: str
    space_code: int = 2

    @property
    def orientation(self) -> str:
        """The input's closest axis code, such as ``"LPS"``."""
        return "".join(nib.orientations.aff2axcodes(np.array(self.affine)))

    @property
    def resampled(self) -> bool:
        """Whether values were interpolated, rather than only reordered, cropped and padded."""
        return _whole_voxels(grid_map(self.affine, self.model_affine), self.model_shape) is None


def freeze_affine(affine: np.ndarray) -> Affine:
    """The 4 x 4 matrix as nested tuples of floats."""
    return tuple(tuple(float(value) for value in row) for row in affine)


def orientation_matrix(orientation: str) -> np.ndarray:
    """World directions (columns) of the three axes of a grid with this axis code.

    Raises:
        ValueError: The code does not name each of right-left, anterior-posterior and superior-inferior once.
    """
    letters = [_DIRECTIONS.get(letter) for letter in orientation] if isinstance(orientation, str) else []
    axes = [direction[0] for direction in letters if direction is not None]
    if len(letters) != 3 or sorted(axes) != [0, 1, 2]:
        raise ValueError(
            f"orientation is {orientation!r}; use one of the 48 axis codes: three letters, one each of R or L, A or P, "
            "S or I, in any order, such as 'RAS' or 'LPS'."
        )
    matrix = np.zeros((3, 3))
    for column, direction in enumerate(letters):
        assert direction is not None
        matrix[direction[0], column] = direction[1]
    return matrix


def centred_affine(shape: Sequence[int], orientation: str, spacing: Sequence[float] | None) -> np.ndarray:
    """Affine of a grid of this shape whose centre lies at 0 mm; no spacing means 1 mm."""
    affine = np.eye(4)
    affine[:3, :3] = orientation_matrix(orientation) @ np.diag(spacing or (1.0, 1.0, 1.0))
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def model_grid(
    affine: np.ndarray,
    shape: Sequence[int],
    orientation: str,
    spacing: Sequence[float] | None,
    size: Sequence[int] | None,
    padding: str = "center",
) -> tuple[np.ndarray, Shape]:
    """Affine and shape of the grid on which a model sees a volume.

    Its axes are exactly those of `orientation`, so an oblique volume is enclosed in its bounding box. The first voxel
    begins where the volume begins, so that at a whole-number ratio of spacings each voxel covers whole voxels.
    `size` then crops or pads about the centre, an odd voxel at the end; with ``padding="end"`` an axis that is too
    short is padded at its end only.
    """
    directions = orientation_matrix(orientation)
    steps = directions.T @ affine[:3, :3]
    counts = np.array(shape)
    if spacing is None:
        # io_orientation assigns a world axis to every array axis; the model's axes are looked up through it
        world_axis = nib.orientations.io_orientation(affine)[:, 0]
        array_axis = [int(np.flatnonzero(world_axis == np.argmax(np.abs(column)))[0]) for column in directions.T]
        voxel = np.linalg.norm(affine[:3, :3], axis=0)[array_axis]
    else:
        voxel = np.array(spacing, dtype=float)

    centre = steps @ ((counts - 1) / 2) + directions.T @ affine[:3, 3]
    extent = np.abs(steps) @ counts
    enclosing = np.maximum(1, np.ceil(extent / voxel - _SLIVER)).astype(int)
    wanted = enclosing if size is None else np.array(size)
    skipped = np.trunc((enclosing - wanted) / 2)
    if padding == "end":
        skipped = np.maximum(skipped, 0)

    placed = np.eye(4)
    placed[:3, :3] = directions * voxel
    placed[:3, 3] = directions @ (centre - extent / 2 + (0.5 + skipped) * voxel)
    return placed, (int(wanted[0]), int(wanted[1]), int(wanted[2]))


def grid_map(source: Affine | np.ndarray, target: Affine | np.ndarray) -> np.ndarray:
    """The 4 x 4 matrix from voxel indices of the target grid to voxel indices of the source grid."""
    return np.linalg.inv(np.array(source)) @ np.array(target)


def regrid(
    volume: torch.Tensor, matrix: np.ndarray, shape: Shape, *, fill: float, nearest: bool = False
) -> torch.Tensor:
    """Brings a volume onto another grid.

    Along axes that stay axes a value is the mean over its voxel's extent where the wanted grid is coarser, and linear
    interpolation where it is finer. Onto a rotated grid it is trilinear interpolation, after a box filter where the
    wanted grid is more than twice as coarse.

    Args:
        volume: `(channels, x, y, z)`, float32.
        matrix: From voxel indices of the wanted grid to those of `volume`; see `grid_map`.
        shape: The wanted grid.
        fill: Value outside the volume's field of view.
        nearest: Nearest neighbour instead, for labels.

    Returns:
        `(channels, *shape)`.
    """
    moves = _whole_voxels(matrix, shape)
    if moves is not None:
        return _move(volume, *moves, shape, fill)
    axes = np.abs(matrix[:3, :3]).argmax(axis=0)
    across = matrix[:3, :3].copy()
    across[axes, range(3)] = 0
    if sorted(axes) == [0, 1, 2] and (np.abs(across) @ np.array(shape)).max() < _SAME_VOXEL:
        return _resample_along_axes(volume, matrix, axes, shape, fill, nearest)
    return _resample_obliquely(volume, matrix, shape, fill, nearest)


def _whole_voxels(matrix: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """The matrix as (signed permutation, whole shift), or None where voxels do not fall on voxels."""
    linear, shift = np.rint(matrix[:3, :3]).astype(int), np.rint(matrix[:3, 3]).astype(int)
    if not np.array_equal(np.abs(linear) @ np.abs(linear).T, np.eye(3)):
        return None
    worst = np.abs(matrix[:3, :3] - linear) @ np.array(shape) + np.abs(matrix[:3, 3] - shift)
    return (linear, shift) if worst.max() < _SAME_VOXEL else None


def _move(volume: torch.Tensor, linear: np.ndarray, shift: np.ndarray, shape: Shape, fill: float) -> torch.Tensor:
    """Reorders, flips, and crops or pads by whole voxels."""
    axes = np.abs(linear).argmax(axis=0)
    volume = volume.permute(0, *(int(axis) + 1 for axis in axes))
    pads: list[int] = []
    for axis in range(3):
        start, length = int(shift[axes[axis]]), volume.shape[axis + 1]
        if linear[axes[axis], axis] < 0:
            volume, start = volume.flip(axis + 1), length - 1 - start
        pads = [-start, shape[axis] - length + start, *pads]
    return F.pad(volume, pads, value=fill).contiguous()


def _resample_along_axes(
    volume: torch.Tensor, matrix: np.ndarray, axes: np.ndarray, shape: Shape, fill: float, nearest: bool
) -> torch.Tensor:
    """Resamples one axis after the other; array axis `axes[k]` becomes axis k."""
    volume = volume.permute(0, *(int(axis) + 1 for axis in axes))
    covered = torch.ones(shape, dtype=torch.bool)
    for axis in range(3):
        step, count = matrix[axes[axis], axis], volume.shape[axis + 1]
        positions = step * np.arange(shape[axis]) + matrix[axes[axis], 3]
        if nearest:
            index = np.clip(np.floor(positions + 0.5), 0, count - 1).astype(int)
            volume = volume.index_select(axis + 1, torch.from_numpy(index))
        else:
            weights = _box_weights(positions, max(1.0, abs(step)), count).to(volume.dtype)
            volume = torch.tensordot(volume, weights, dims=([axis + 1], [1])).movedim(-1, axis + 1)
        inside = (positions >= -0.5 - _SAME_VOXEL) & (positions <= count - 0.5 + _SAME_VOXEL)
        covered &= torch.from_numpy(inside).view([-1 if axis == other else 1 for other in range(3)])
    return torch.where(covered, volume, fill).contiguous()


def _resample_obliquely(
    volume: torch.Tensor, matrix: np.ndarray, shape: Shape, fill: float, nearest: bool
) -> torch.Tensor:
    """Samples at every point of the wanted grid, a slab of it at a time."""
    counts = torch.tensor(volume.shape[1:], dtype=torch.float64)
    for axis, ratio in enumerate(np.linalg.norm(matrix[:3, :3], axis=1)):
        if ratio > 2 and not nearest:  # the interpolation that follows widens the box by about one voxel
            weights = _box_weights(np.arange(volume.shape[axis + 1]), ratio - 1, volume.shape[axis + 1])
            volume = torch.tensordot(volume, weights.to(volume.dtype), dims=([axis + 1], [1])).movedim(-1, axis + 1)
    linear, offset = torch.from_numpy(matrix[:3, :3].copy()), torch.from_numpy(matrix[:3, 3].copy())
    y = torch.arange(shape[1], dtype=torch.float64)[:, None, None] * linear[:, 1]
    z = torch.arange(shape[2], dtype=torch.float64)[:, None] * linear[:, 2]
    slab = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    result = volume.new_empty((volume.shape[0], *shape))
    for start in range(0, shape[0], slab):
        x = torch.arange(start, min(start + slab, shape[0]), dtype=torch.float64)[:, None, None, None] * linear[:, 0]
        position = x + y + z + offset
        covered = ((position >= -0.5 - _SAME_VOXEL) & (position <= counts - 0.5 + _SAME_VOXEL)).all(dim=-1)
        # grid_sample wants its coordinates as (z, y, x), with -1 and 1 at the outer edges of the volume
        normalized = ((2 * position + 1) / counts - 1).flip(-1).to(volume.dtype)
        sampled = F.grid_sample(
            volume[None],
            normalized[None],
            mode="nearest" if nearest else "bilinear",
            padding_mode="border",
            align_corners=False,
        )[0]
        result[:, start : start + slab] = torch.where(covered, sampled, fill)
    return result


def _box_weights(positions: np.ndarray, width: float, count: int) -> torch.Tensor:
    """How much each of `count` voxels, the outer ones endless, has of a box of this width about each position.

    A box of width 1 is linear interpolation; a box as wide as a whole number of voxels is their mean.
    """
    edges = np.arange(count + 1) - 0.5
    edges[0], edges[-1] = -np.inf, np.inf
    first, last = positions[:, None] - width / 2, positions[:, None] + width / 2
    overlap = np.minimum(last, edges[1:]) - np.maximum(first, edges[:-1])
    return torch.from_numpy(np.maximum(overlap, 0) / width)
