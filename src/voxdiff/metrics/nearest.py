"""The nearest real volume of every synthetic one by MS-SSIM: coarse scales choose candidates, which are scored in full.

The two coarsest of the scales are compared for all pairs, at less than a hundredth of the cost; the best few of each
synthetic volume are then scored by MS-SSIM itself. In 240 searches among 400 and 1262 simulated brains at 64³ (other
subjects; the same blurred, noised, darkened; noised copies) the nearest one was always among the 11 best of the coarse
scales (benchmarks/results/nearest.md). The search is resumable: what was finished is kept in a folder.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from voxdiff.metrics.pyramid_similarity import (
    MsSsimSettings,
    SimilarityPyramid,
    full_precision,
    pooled,
    similarity_matrix,
)
from voxdiff.volumes import atomic_path

DEFAULT_CANDIDATES = 32
COARSE_SCALES = 2
_BLOCK = 32  # volumes between two saves
_FORMAT = 1  # of the saved blocks

Volumes = torch.Tensor | Sequence[torch.Tensor]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Matches:
    """The nearest real volumes of each synthetic volume.

    Attributes:
        index: (number,) place of the nearest real volume.
        similarity: (number,) MS-SSIM with it.
        candidates: (number, candidates) places of the real volumes that were scored, nearest first.
        candidate_similarities: (number, candidates) MS-SSIM with them.
    """

    index: torch.Tensor
    similarity: torch.Tensor
    candidates: torch.Tensor
    candidate_similarities: torch.Tensor


def nearest_by_ms_ssim(
    synthetic: Volumes,
    real: Volumes,
    *,
    data_range: float = 1.0,
    scales: int = 4,
    kernel_size: int = 5,
    sigma: float = 1.0,
    candidates: int | None = DEFAULT_CANDIDATES,
    device: str | torch.device = "cpu",
    memory_gib: float = 4.0,
    workers: int = 2,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Matches:
    """Find the nearest real volume of every synthetic volume by MS-SSIM.

    Args:
        synthetic: (number, 1, x, y, z), or anything with a length whose items are (1, x, y, z), read when needed. An
            attribute `fingerprint` stands for its content; without one the content is hashed.
        real: the same, on the same grid.
        data_range: largest minus smallest possible value, as the other three of
            :func:`voxdiff.metrics.similarity.ms_ssim`.
        scales: 1 to 5; each halves the grid.
        kernel_size: voxels a side of the Gaussian window.
        sigma: width of the window in voxels.
        candidates: how many real volumes are scored in full for each synthetic one; None scores all of them, which is
            the better choice on a GPU or with fewer than 3 scales.
        device: where the similarities are computed.
        memory_gib: room on the device for synthetic volumes with their statistics. The real volumes are read once for
            each time that it is filled.
        workers: threads that read volumes ahead.
        cache_dir: where finished blocks are kept, in a folder named after the settings and the content of both sets;
            the same call goes on from there. None keeps nothing.
        progress: called after each finished block with the stage ("reading", "choosing", "scoring"), how much of it is
            done, and how much it is in all.

    Raises:
        ValueError: a set is empty, the grids differ or are too small for the scales, a volume holds values that are
            not finite or span more than `data_range`, or an argument is out of range.
    """
    settings = MsSsimSettings(data_range=data_range, scales=scales, kernel_size=kernel_size, sigma=sigma)
    if candidates is not None and candidates < 1:
        raise ValueError(f"candidates is {candidates}; give at least 1, or None for all real volumes.")
    if workers < 1 or memory_gib <= 0:
        raise ValueError(f"workers is {workers} and memory_gib is {memory_gib}; both must be positive.")
    sets = _check_sets(synthetic, real, settings, workers)
    number = len(real) if candidates is None else min(candidates, len(real))
    store = _Store(_cache_folder(cache_dir, settings, number, sets))
    search = _Search(*sets, settings, torch.device(device), store, progress or (lambda stage, done, total: None))
    with full_precision():
        chosen = search.choose(number)
        similarities = search.score(chosen, memory_gib)
    return _ranked(chosen, similarities)


class _VolumeReader:
    """Reads and checks the volumes of one set, some ahead of their use."""

    def __init__(self, volumes: Volumes, kind: str, workers: int) -> None:
        if len(volumes) == 0:
            raise ValueError(f"The {kind} set is empty; give at least one volume.")
        self.volumes, self.kind, self.workers = volumes, kind, workers
        shape = tuple(volumes[0].shape)
        if len(shape) != 4 or shape[0] != 1:
            raise ValueError(f"The {kind} volumes have the shape {shape}; allowed is (1, x, y, z) each.")
        self.grid = shape[1:]

    def __len__(self) -> int:
        return len(self.volumes)

    def read(self, places: Sequence[int], settings: MsSsimSettings) -> Iterator[torch.Tensor]:
        """The volumes at these places, (1, x, y, z) each."""
        with ThreadPoolExecutor(self.workers) as pool:
            for place, volume in zip(places, pool.map(self.volumes.__getitem__, places), strict=True):
                self._check(volume, place, settings)
                yield volume.float()

    def _check(self, volume: torch.Tensor, place: int, settings: MsSsimSettings) -> None:
        if tuple(volume.shape) != (1, *self.grid):
            raise ValueError(
                f"The {self._name(place)} has the shape {tuple(volume.shape)} and the first one {(1, *self.grid)}; "
                "bring all to one grid (1, x, y, z)."
            )
        lowest, highest = float(volume.min()), float(volume.max())
        if not highest - lowest <= settings.data_range * 1.001:  # false for NaN as well
            raise ValueError(
                f"The {self._name(place)} goes from {lowest:g} to {highest:g} and the data range is {settings.data_range:g}; "
                "scale the volumes (finite values) or state their data_range."
            )

    def _name(self, place: int) -> str:
        names = getattr(self.volumes, "names", None)
        return f"{self.kind} volume {place}" + (f" ({names[place]})" if names else "")

    @cached_property
    def fingerprint(self) -> str:
        known = getattr(self.volumes, "fingerprint", None)
        if known is not None:
            return str(known)
        digest = hashlib.sha256(str(len(self)).encode())
        for place in range(len(self)):
            volume = self.volumes[place]
            digest.update(str((volume.dtype, tuple(volume.shape))).encode())
            digest.update(volume.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


class _Store:
    """Named arrays in a folder, or nowhere."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def load(self, name: str) -> np.ndarray | None:
        path = self.folder and self.folder / f"{name}.npy"
        if not path or not path.exists():
            return None
        try:
            return np.load(path)
        except (ValueError, EOFError) as error:
            raise ValueError(f"The kept block {path} cannot be read ({error}); delete the file.") from error

    def save(self, name: str, values: np.ndarray) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / f"{name}.npy") as temporary:
            np.save(temporary, values)


@dataclass
class _Search:
    synthetic: _VolumeReader
    real: _VolumeReader
    settings: MsSsimSettings
    device: torch.device
    store: _Store
    progress: Progress

    @property
    def skipped(self) -> int:
        """Fine scales that are left out where all pairs are compared."""
        return max(0, self.settings.scales - COARSE_SCALES)

    def choose(self, number: int) -> np.ndarray:
        """Places of the candidates of each synthetic volume: (number of synthetic volumes, number), ascending."""
        if number == len(self.real):
            return np.tile(np.arange(number), (len(self.synthetic), 1))
        chosen, coarse = [], None
        for block in _blocks(len(self.synthetic)):
            name = f"candidates-{block.start:06d}"
            rows = self.store.load(name)
            if rows is None:
                images, real = coarse = coarse or self._coarse()
                part = SimilarityPyramid(images[block.start : block.stop], self.settings, skipped=self.skipped)
                best = similarity_matrix(part, real).argsort(dim=1, descending=True, stable=True)[:, :number]
                rows = best.sort(dim=1).values.cpu().numpy()
                self.store.save(name, rows)
            chosen.append(rows)
            self.progress("choosing", block.stop, len(self.synthetic))
        return np.concatenate(chosen)

    def _coarse(self) -> tuple[torch.Tensor, SimilarityPyramid]:
        """The pooled synthetic volumes, and the coarse pyramid of the real ones."""
        real = self._coarse_images(self.real, 0)
        images = self._coarse_images(self.synthetic, len(self.real))
        return images, SimilarityPyramid(real, self.settings, skipped=self.skipped)

    def _coarse_images(self, volumes: _VolumeReader, already: int) -> torch.Tensor:
        """The volumes of a set, pooled to the finest of the coarse scales."""
        parts = []
        for block in _blocks(len(volumes)):
            name = f"{volumes.kind}-coarse-{block.start:06d}"
            part = self.store.load(name)
            if part is None:
                read = volumes.read(block, self.settings)
                part = torch.cat([pooled(volume[None], self.skipped) for volume in read]).cpu().numpy()
                self.store.save(name, part)
            parts.append(torch.from_numpy(part))
            self.progress("reading", already + block.stop, len(self.real) + len(self.synthetic))
        return torch.cat(parts).to(self.device)

    def score(self, chosen: np.ndarray, memory_gib: float) -> np.ndarray:
        """MS-SSIM of each synthetic volume with its candidates, of the shape of `chosen`."""
        scores = self.store.load("similarities")
        if scores is None:
            scores = np.full(chosen.shape, np.nan, dtype=np.float32)
        held_bytes = 4 * 3 * 8 / 7 * np.prod(self.real.grid)
        for rows in _blocks(len(self.synthetic), max(1, int(memory_gib * 2**30 / held_bytes))):
            held = None
            for block in _blocks(len(self.real)):
                # NaN marks what is still to be done.
                todo = np.isnan(scores) & (chosen >= block.start) & (chosen < block.stop)
                todo[: rows.start] = todo[rows.stop :] = False
                if not todo.any():
                    continue
                held = held or self._pyramid(self.synthetic, rows)
                self._score_block(held, rows.start, chosen, todo, scores)
                self.store.save("similarities", scores)
                self.progress("scoring", int(np.isfinite(scores).sum()), scores.size)
        return scores

    def _score_block(
        self, held: SimilarityPyramid, start: int, chosen: np.ndarray, todo: np.ndarray, scores: np.ndarray
    ) -> None:
        """Fill `scores` where `todo` says so, for the synthetic volumes that are held, of which the first is `start`."""
        places = np.unique(chosen[todo]).tolist()
        for place, volume in zip(places, self.real.read(places, self.settings), strict=True):
            one = SimilarityPyramid(volume[None].to(self.device), self.settings)
            rows, columns = np.nonzero(todo & (chosen == place))
            # Runs of rows are views of what is held; any other choice would be gathered into a copy.
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                others = held[rows[run[0]] - start : rows[run[-1]] - start + 1]
                scores[rows[run], columns[run]] = one.similarities(others).cpu().numpy()

    def _pyramid(self, volumes: _VolumeReader, places: range) -> SimilarityPyramid:
        images = torch.empty(len(places), 1, *volumes.grid, device=self.device)
        for image, volume in zip(images, volumes.read(places, self.settings), strict=True):
            image.copy_(volume)
        return SimilarityPyramid(images, self.settings)


def _check_sets(
    synthetic: Volumes, real: Volumes, settings: MsSsimSettings, workers: int
) -> tuple[_VolumeReader, _VolumeReader]:
    readers = _VolumeReader(synthetic, "synthetic", workers), _VolumeReader(real, "real", workers)
    if readers[0].grid != readers[1].grid:
        grids = [" x ".join(map(str, reader.grid)) for reader in readers]
        raise ValueError(
            f"The synthetic volumes have {grids[0]} voxels and the real ones {grids[1]}; bring both to one grid."
        )
    settings.check_grid(readers[0].grid)
    return readers


def _cache_folder(
    cache_dir: str | Path | None, settings: MsSsimSettings, number: int, sets: tuple[_VolumeReader, _VolumeReader]
) -> Path | None:
    if cache_dir is None:
        return None
    key = [_FORMAT, COARSE_SCALES, asdict(settings), number, *(volumes.fingerprint for volumes in sets)]
    return Path(cache_dir) / f"nearest-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}"


def _blocks(number: int, size: int = _BLOCK) -> list[range]:
    return [range(first, min(first + size, number)) for first in range(0, number, size)]


def _ranked(chosen: np.ndarray, similarities: np.ndarray) -> Matches:
    """Nearest first; of equal ones the first in the set."""
    values, places = torch.from_numpy(similarities), torch.from_numpy(chosen)
    order = values.argsort(dim=1, descending=True, stable=True)
    values, places = values.gather(1, order), places.gather(1, order)
    return Matches(places[:, 0], values[:, 0], places, values)
