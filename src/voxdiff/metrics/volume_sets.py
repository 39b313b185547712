"""A folder of volumes as a data set to be measured: found, checked, and brought to one grid and to [0, 1]."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from voxdiff.metrics.volume_sources import (
    Source,
    common_unit,
    file_stem,
    found_sources,
    given_sources,
    require_one_grid,
    standard_processor,
)
from voxdiff.volumes import VolumeProcessor, atomic_path


class VolumeSet(Sequence[torch.Tensor]):
    """Volumes, each `(1, x, y, z)` float32 in [0, 1] on one grid; read when asked for.

    Attributes:
        folder: where they were found, or what to call them in an error.
        sources: one a volume, in order.
        processor: brings each volume to the grid and to [0, 1]; its configuration is part of the protocol.
        cache_dir: where prepared volumes are kept, None for nowhere.
        pattern: which files of the folder.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        processor: VolumeProcessor,
        cache_dir: Path | None = None,
        pattern: str = "*",
    ) -> None:
        self.folder = folder
        self.sources = list(sources)
        self.processor = processor
        self.cache_dir = cache_dir
        self.pattern = pattern
        self._digests: dict[str, str] = {}

    @classmethod
    def open(
        cls,
        volumes: str | Path | np.ndarray | torch.Tensor | Sequence[np.ndarray],
        *,
        pattern: str = "*",
        processor: VolumeProcessor | None = None,
        limit: int | None = None,
        unit: str | None = None,
        size: Sequence[int] | None = None,
        spacing: Sequence[float] | None = None,
        cache_dir: str | Path | None = None,
    ) -> Self:
        """Find the volumes and check their headers.

        Args:
            volumes: a folder, searched below for `.nii` and `.nii.gz` files; or arrays (x, y, z), all of one grid.
            pattern: which files, such as "*_t1.nii.gz".
            processor: how to prepare them; None chooses by the headers and values (:func:`standard_processor`).
            limit: the first so many, by name.
            unit: "HU" or "a.u." where the headers do not say.
            size: bring the volumes to this grid (x, y, z); needed where their grids differ.
            spacing: bring the volumes to this voxel size in mm first.
            cache_dir: where prepared volumes are kept.

        Raises:
            FileNotFoundError: no such folder, or no volume in it.
            ValueError: the volumes have different grids or units, or fewer than `limit` exist.
        """
        if isinstance(volumes, str | Path):
            folder = Path(volumes)
            sources = found_sources(folder, pattern)
        else:
            folder, sources = Path("the arrays"), given_sources(volumes)
        if limit is not None and len(sources) < limit:
            raise ValueError(
                f"{folder} holds {len(sources)} volumes and {limit} are asked for; lower the number or add volumes."
            )
        sources = sources[:limit]
        found_unit = common_unit(folder, [source.header for source in sources], unit)
        if size is None and (processor is None or processor.size is None):
            require_one_grid(folder, [source.header for source in sources])
        if processor is None:
            chosen = standard_processor(folder, [source.volume for source in sources], found_unit)
            processor = replace(chosen, size=size, spacing=spacing)
        if found_unit is not None and processor.intensity == "window" and processor.unit != found_unit:
            raise ValueError(
                f"{folder} holds volumes in {found_unit} and they are to be measured in {processor.unit}; convert one "
                "of the sets, or name the unit with --unit if the headers are wrong."
            )
        return cls(folder, sources, processor, Path(cache_dir) if cache_dir is not None else None, pattern)

    @property
    def names(self) -> list[str]:
        """File names below the folder, without their endings."""
        return [source.name for source in self.sources]

    @property
    def case_names(self) -> list[str]:
        """The names without what the pattern adds to them: "s1" for "s1_t1" found by "*_t1.nii.gz"."""
        ending = file_stem(Path(self.pattern)).rpartition("*")[2]
        return [name.removesuffix(ending) or name for name in self.names]

    @property
    def paths(self) -> list[Path]:
        """The files, where the volumes come from a folder."""
        return [source.volume for source in self.sources if isinstance(source.volume, Path)]

    @cached_property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size of the prepared volumes along x, y, z."""
        _, geometry = self.processor.preprocess(self.sources[0].volume, unit=self._unit)
        edges = np.linalg.norm(np.array(geometry.model_affine)[:3, :3], axis=0)
        return tuple(round(float(edge), 4) for edge in edges)

    @property
    def fingerprint(self) -> str:
        """Hash of names, sizes, dates and processor: changes whenever a file or the preparation does."""
        state = [[source.name, _state_of(source.volume)] for source in self.sources]
        return _digest([state, self.processor.to_dict()])

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        return self._load(self.sources[index])

    def subset(self, indices: Sequence[int]) -> "VolumeSet":
        """The volumes at these places, in this order."""
        sources = [self.sources[index] for index in indices]
        chosen = VolumeSet(self.folder, sources, self.processor, self.cache_dir, self.pattern)
        chosen._digests = self._digests
        return chosen

    def prepare(self, on_volume: Callable[[], None] | None = None) -> None:
        """Read every volume once, so that a broken one is found before any heavy work, and keep it in the cache.

        Raises:
            ValueError: volumes cannot be read, hold NaN, or lie on different grids once prepared.
        """
        problems, grids = [], Counter[tuple[int, ...]]()
        for source in self.sources:
            try:
                values = self._load(source)
                grids[tuple(values.shape[1:])] += 1
                if self.processor.intensity != "labels" and values.min() == values.max():
                    problems.append(f"{source.name}: all of its voxels have one value")
            except (OSError, ValueError) as error:
                problems.append(f"{source.name}: {str(error).rstrip('.')}")
            if on_volume is not None:
                on_volume()
        if problems:
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise ValueError(
                f"{len(problems)} of the {len(self)} volumes in {self.folder} cannot be measured "
                f"({'; '.join(problems[:3])}{more}); repair or remove them."
            )
        if len(grids) > 1:
            listed = ", ".join("x".join(map(str, grid)) for grid in sorted(grids))
            raise ValueError(f"The volumes in {self.folder} have different grids ({listed}); give one with --size.")

    def digest(self, index: int) -> str:
        """SHA-256 of a prepared volume's voxels."""
        source = self.sources[index]
        if source.key not in self._digests:
            self._load(source)
        return self._digests[source.key]

    @property
    def content_digest(self) -> str:
        """SHA-256 over the prepared volumes in their order, by which pairs and anchors are drawn."""
        return _digest([self.digest(index) for index in range(len(self))])

    @property
    def _unit(self) -> str | None:
        return "HU" if self.processor.unit == "HU" else None

    def _load(self, source: Source) -> torch.Tensor:
        cached = self._cache_path(source)
        if cached is not None and cached.is_file():
            values = _read_prepared(cached)
        else:
            values = self.processor.preprocess(source.volume, unit=self._unit)[0][0]
            if cached is not None:
                cached.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(cached) as temporary, temporary.open("wb") as file:
                    np.save(file, values.numpy())
        if source.key not in self._digests:
            self._digests[source.key] = hashlib.sha256(values.numpy().tobytes()).hexdigest()
        return values

    def _cache_path(self, source: Source) -> Path | None:
        if self.cache_dir is None or not isinstance(source.volume, Path):
            return None
        return self.cache_dir / f"{_digest([_state_of(source.volume), self.processor.to_dict()])[:24]}.npy"


def _read_prepared(path: Path) -> torch.Tensor:
    try:
        return torch.from_numpy(np.load(path))
    except (ValueError, EOFError) as error:
        raise ValueError(f"The prepared volume {path} cannot be read ({error}); delete the file.") from error


def _state_of(volume: Any) -> list[Any]:
    if isinstance(volume, Path):
        status = volume.stat()
        return [str(volume.resolve()), status.st_size, status.st_mtime_ns]
    return [hashlib.sha256(np.ascontiguousarray(volume).tobytes()).hexdigest()]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
