"""Distance of a volume to its nearest reference, blind to what a copy may have gone through.

A copy may be mirrored, moved by some voxels, scaled in intensity, lightly noised or lightly warped, and is still a copy.
Intensities are replaced by their ranks within the foreground of a grid of cells, which no increasing intensity map
changes. All flips and shifts are compared on a grid twice as coarse; the few best references are then aligned and
compared window by window, each window free to move by one cell, as a light warp moves it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Axes = tuple[int, ...]
Volumes = torch.Tensor | Sequence[torch.Tensor]

FLIPS: tuple[Axes, ...] = tuple(axes for count in range(4) for axes in itertools.combinations((0, 1, 2), count))
"""Every combination of mirrored axes; 0, 1, 2 are x, y, z."""

_CELLS = 32  # at most, along each axis
_FOREGROUND = 0.25  # of the way from the mean background to the mean foreground
_WINDOW, _STRIDE = 5, 2  # cells
_NEIGHBOURHOOD = tuple(itertools.product((-1, 0, 1), repeat=3))


@dataclass(frozen=True)
class CopyMatches:
    """Nearest references of a set of volumes under the copy distance.

    Attributes:
        distances: (number,) float64, 0 for a copy, about 1 for unrelated volumes.
        nearest: (number,) index of the nearest reference.
        flips: axes along which the nearest reference is mirrored to give the volume, one tuple a volume.
        shifts: (number, 3) voxels along x, y, z by which the mirrored reference is then moved, to about half a cell.
        neighbour_distances: (number, candidates) distances to the references that were aligned, ascending.
        neighbours: (number, candidates) their indices.
    """

    distances: torch.Tensor
    nearest: torch.Tensor
    flips: tuple[Axes, ...]
    shifts: torch.Tensor
    neighbour_distances: torch.Tensor
    neighbours: torch.Tensor

    @property
    def ratios(self) -> torch.Tensor:
        """Distance to the nearest reference over the mean distance to the next ones, (number,); small for a copy.

        Smooth volumes are nearer to every reference, but keep their ratio (after Carlini 2023).

        Raises:
            ValueError: only one reference was aligned.
        """
        if self.neighbour_distances.shape[1] < 2:
            raise ValueError("A ratio needs at least 2 aligned references a volume, there is 1; raise candidates.")
        others = self.neighbour_distances[:, 1:].mean(dim=1)
        return self.distances / others.clamp_min(torch.finfo(torch.float64).tiny)


class CopyReferences:
    """References made ready once, for many calls of :func:`copy_distances`.

    Args:
        references: (number, channels, x, y, z), or any sequence of (channels, x, y, z), which is read one by one.
        device: where to compare.

    Raises:
        ValueError: an empty set, unlike shapes, or values that are not finite.
    """

    def __init__(self, references: Volumes, *, device: str | torch.device = "cpu") -> None:
        if not len(references):
            raise ValueError("There are no references to compare with; give at least 1.")
        self.shape = tuple(references[0].shape)
        self.device = torch.device(device)
        features = (_checked(references[i], self.shape).to(device) for i in range(len(references)))
        self.fine = torch.stack([rank_features(volume) for volume in features])
        self.coarse = _coarsen(self.fine).flatten(1)

    def __len__(self) -> int:
        return len(self.fine)


def copy_distances(
    volumes: Volumes,
    references: Volumes | CopyReferences,
    *,
    candidates: int = 8,
    max_shift: float = 1 / 16,
    flips: Sequence[Axes] = FLIPS,
    exclude_same_index: bool = False,
    device: str | torch.device = "cpu",
) -> CopyMatches:
    """Find the reference that each volume may be a copy of.

    The distance is one minus the mean correlation of ranks over windows in the union of both foregrounds. It belongs to
    its settings and to the set of references: call a volume a copy by comparing with held-out volumes
    (:func:`voxdiff.metrics.privacy.memorisation_test`).

    Args:
        volumes: (number, channels, x, y, z), or any sequence of (channels, x, y, z), which is read one by one.
        references: the same, on the same grid, or ready ones, which keep their device.
        candidates: references that each volume is aligned with.
        max_shift: largest shift searched, as a share of the field of view along each axis.
        flips: mirrorings searched.
        exclude_same_index: volume i is not compared with reference i, for a set against itself.
        device: where to compute.

    Raises:
        ValueError: an empty set, unlike shapes, values that are not finite, or settings out of range.
    """
    available = len(references) - int(exclude_same_index)
    if min(len(volumes), available, candidates, len(flips)) < 1 or not 0 <= max_shift < 0.5:
        raise ValueError(
            f"{len(volumes)} volumes, {available} references to compare with, {candidates} candidates, {len(flips)} "
            f"flips and max_shift {max_shift} were given; give at least 1 of each, and a shift in [0, 0.5)."
        )
    ready = references if isinstance(references, CopyReferences) else CopyReferences(references, device=device)
    rows = []
    for index in range(len(volumes)):
        query = _Query(_checked(volumes[index], ready.shape).to(ready.device), max_shift)
        search = query.search(ready.coarse, flips)
        if exclude_same_index:
            search.similarities[index] = -torch.inf
        chosen = search.similarities.topk(min(candidates, available)).indices.tolist()
        rows.append(
            sorted((query.align(i, ready.fine[i], search.flip(i), search.move(i)) for i in chosen), key=_by_distance)
        )
    return CopyMatches(
        distances=torch.tensor([row[0].distance for row in rows], dtype=torch.float64),
        nearest=torch.tensor([row[0].reference for row in rows]),
        flips=tuple(row[0].flip for row in rows),
        shifts=torch.tensor([row[0].shift for row in rows]),
        neighbour_distances=torch.tensor([[match.distance for match in row] for row in rows], dtype=torch.float64),
        neighbours=torch.tensor([[match.reference for match in row] for row in rows]),
    )


def rank_features(volume: torch.Tensor) -> torch.Tensor:
    """Ranks of a volume's intensities within its foreground, on a grid of at most 32 cells along each axis.

    Args:
        volume: (channels, x, y, z), bright on a darker background, in any unit.

    Returns:
        (channels, x', y', z'), evenly spread over [-1, 1] in the foreground of a channel, 0 in its background.
    """
    factors = _voxels_per_cell(volume)
    pooled = F.avg_pool3d(volume[None].float(), factors, ceil_mode=True, count_include_pad=False)[0]
    return torch.stack([_foreground_ranks(channel) for channel in pooled])


def _foreground_ranks(channel: torch.Tensor) -> torch.Tensor:
    foreground = channel > _foreground_threshold(channel)
    inside = channel[foreground]
    ordered = inside.sort().values
    # The mean of both sides gives equal intensities one rank.
    places = torch.searchsorted(ordered, inside) + torch.searchsorted(ordered, inside, right=True)
    ranks = torch.zeros_like(channel)
    ranks[foreground] = places.float() / max(len(inside), 1) - 1
    return ranks


def _foreground_threshold(channel: torch.Tensor) -> float:
    """Between the means of the two classes that Otsu's criterion makes: noise moves the means little."""
    ordered = channel.flatten().sort().values.double()
    count = torch.arange(1, len(ordered), dtype=torch.float64, device=ordered.device)
    sums = ordered.cumsum(0)
    below, above = sums[:-1] / count, (sums[-1] - sums[:-1]) / (len(ordered) - count)
    split = (count * (len(ordered) - count) * (above - below).square()).argmax()
    return float(below[split] + _FOREGROUND * (above[split] - below[split]))


@dataclass(frozen=True)
class _Match:
    distance: float
    reference: int
    flip: Axes
    shift: list[int]


@dataclass(frozen=True)
class _Search:
    """Best correlation with each reference on the coarse grid, and the flip and the cells moved that give it."""

    similarities: torch.Tensor
    flip_indices: torch.Tensor
    moves: torch.Tensor
    flips: Sequence[Axes]

    def flip(self, reference: int) -> Axes:
        return self.flips[int(self.flip_indices[reference])]

    def move(self, reference: int) -> list[int]:
        return self.moves[reference].tolist()


class _Query:
    """A volume's features as it is and moved by half a cell along each axis; the pooling makes them differ."""

    def __init__(self, volume: torch.Tensor, max_shift: float) -> None:
        self.factors = _voxels_per_cell(volume)
        self.halves = [factor // 2 for factor in self.factors]
        phases = itertools.product(*(range(1 + (half > 0)) for half in self.halves))
        self.phases = {phase: rank_features(self._moved_half(volume, phase)) for phase in phases}
        self.max_shift = max_shift

    def search(self, references: torch.Tensor, flips: Sequence[Axes]) -> _Search:
        """The flip and the whole-cell move under which each reference is nearest on the coarse grid.

        Args:
            references: (number, coarse cells), of norm 1.
            flips: mirrorings to try.
        """
        features = self.phases[0, 0, 0]
        reach = [round(self.max_shift * size) for size in features.shape[1:]]
        moves = list(itertools.product(*(range(-most, most + 1) for most in reach)))
        similarities, places = [], []
        for axes in flips:
            variants = _coarsen(_moved(_flipped(features, axes), moves)).flatten(1)
            best = (references @ variants.T).max(dim=1)
            similarities.append(best.values)
            places.append(best.indices)
        best = torch.stack(similarities).max(dim=0)
        place = torch.stack(places).gather(0, best.indices[None])[0]
        return _Search(best.values, best.indices, torch.tensor(moves)[place.cpu()], flips)

    def align(self, index: int, reference: torch.Tensor, axes: Axes, near: Sequence[int]) -> _Match:
        """Move by half cells around `near`, then compare window by window."""
        mirrored = [-1 if axis in axes else 1 for axis in range(3)]
        steps = [self._half_steps(axis, near[axis], mirrored[axis]) for axis in range(3)]
        variants, shifts = [], []
        for step in itertools.product(*steps):
            cells, phase, voxels = (tuple(part) for part in zip(*step, strict=True))
            variants.append(_moved(_flipped(self.phases[phase], axes), [cells])[0])
            # The volume was mirrored and then moved back; the reference is mirrored and then moved.
            shifts.append([-sign * voxel for sign, voxel in zip(mirrored, voxels, strict=True)])
        stacked = torch.stack(variants)
        best = int((F.normalize(stacked.flatten(1), dim=1) @ reference.flatten()).argmax())
        distance = 1 - _window_similarity(stacked[best], reference)
        return _Match(max(float(distance), 0.0), index, axes, shifts[best])

    def _half_steps(self, axis: int, near: int, sign: int) -> list[tuple[int, int, int]]:
        """Cells, phase and voxels of the moves less than a cell from `near` cells; a mirrored half cell goes back."""
        factor, half = self.factors[axis], self.halves[axis]
        phases = (0, 1) if half else (0,)
        every = [
            (cells, phase, factor * cells + sign * half * phase)
            for cells in range(near - 1, near + 2)
            for phase in phases
        ]
        return [step for step in every if abs(step[2] - factor * near) < factor]

    def _moved_half(self, volume: torch.Tensor, phase: Axes) -> torch.Tensor:
        amounts = [half * one for half, one in zip(self.halves, phase, strict=True)]
        for axis, amount in enumerate(amounts, start=1):
            first = volume.narrow(axis, 0, 1)
            kept = volume.narrow(axis, 0, volume.shape[axis] - amount)
            volume = torch.cat([first] * amount + [kept], dim=axis)
        return volume


def _window_similarity(volume: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Mean over windows of the best correlation among displacements by one cell, each window weighted by its content.

    A window that is empty in one of the two counts as 0, one that is empty in both does not count.
    """
    displaced = _moved(volume, _NEIGHBOURHOOD)
    products = _window_means((displaced * reference).sum(dim=1))
    energies = _window_means(displaced.square().sum(dim=1))
    reference_energy = _window_means(reference.square().sum(dim=0, keepdim=True))
    correlations = (products / (energies * reference_energy).sqrt().clamp_min(1e-6)).amax(dim=0).double()
    weights = (energies[len(_NEIGHBOURHOOD) // 2] + reference_energy[0]).double().sqrt()
    return (correlations * weights).sum() / weights.sum().clamp_min(torch.finfo(torch.float64).tiny)


def _window_means(maps: torch.Tensor) -> torch.Tensor:
    """(maps, x, y, z) averaged over overlapping windows."""
    maps = maps[:, None]
    for axis in range(3):
        window, stride, padding = [1, 1, 1], [1, 1, 1], [0, 0, 0]
        window[axis], stride[axis], padding[axis] = _WINDOW, _STRIDE, _WINDOW // 2
        maps = F.avg_pool3d(maps, window, stride, padding)
    return maps[:, 0]


def _coarsen(features: torch.Tensor) -> torch.Tensor:
    """(number, channels, x, y, z) on half the grid, of norm 1; nothing stays 0."""
    coarse = F.avg_pool3d(features, 2, ceil_mode=True, count_include_pad=False)
    return F.normalize(coarse.flatten(1), dim=1).view_as(coarse)


def _moved(volume: torch.Tensor, moves: Sequence[Sequence[int]]) -> torch.Tensor:
    """(channels, x, y, z) moved by whole cells, with 0 where nothing was: (moves, channels, x, y, z)."""
    x, y, z = volume.shape[1:]
    reach = [max(abs(move[axis]) for move in moves) for axis in range(3)]
    padded = F.pad(volume, [pad for most in reversed(reach) for pad in (most, most)])
    starts = [[most - step for most, step in zip(reach, move, strict=True)] for move in moves]
    return torch.stack([padded[:, i : i + x, j : j + y, k : k + z] for i, j, k in starts])


def _flipped(volume: torch.Tensor, axes: Axes) -> torch.Tensor:
    return volume.flip([axis + 1 for axis in axes]) if axes else volume


def _voxels_per_cell(volume: torch.Tensor) -> list[int]:
    return [-(-size // _CELLS) for size in volume.shape[1:]]


def _checked(volume: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if volume.ndim != 4 or tuple(volume.shape) != shape or not torch.isfinite(volume).all():
        raise ValueError(
            f"A volume of shape {tuple(volume.shape)} was given beside one of shape {shape}, or with values that are not "
            "finite; give finite volumes (channels, x, y, z) of one shape."
        )
    return volume


def _by_distance(match: _Match) -> float:
    return match.distance
