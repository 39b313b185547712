"""Training data from files: subjects of a folder or a `niftifolder` data set, prepared once and cached."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset

from voxdiff import __version__
from voxdiff.volumes import VolumeProcessor, atomic_path

_SUFFIXES = (".nii.gz", ".nii")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def find_subjects(folder: str | Path, columns: Sequence[str], *, split: str | None = None) -> list[dict[str, Any]]:
    """List the subjects of a folder as mappings column → path, with a ``subject_id``.

    A folder with a ``metadata.csv`` (or ``.jsonl``) is read as a `niftifolder` data set: one column a contrast
    (``t1_file_name`` gives ``t1``) and splits from ``train/``, ``test/`` folders. Any other folder is searched for
    NIfTI files: with one column every file is a subject; with several, a file belongs to the column its name ends with,
    and the files of one directory that begin alike are a subject (``BraTS-1-t1n.nii.gz``, ``BraTS-1-t2w.nii.gz``).

    Args:
        folder: The folder.
        columns: Names of the volumes each subject must have.
        split: Split of the data set, in a folder without metadata the name of a subfolder; None is ``train`` where
            there is such a split.

    Raises:
        FileNotFoundError: If the folder or its volumes are missing.
        ValueError: If the data set has no such split or column, or a subject lacks a volume.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"The data folder {folder} does not exist; give a folder of .nii.gz files.")
    if any(next(folder.rglob(name), None) for name in _METADATA):
        return _read_niftifolder(folder, columns, split or "train")
    if split is not None and not (folder / split).is_dir():
        raise ValueError(
            f"{folder} has no metadata.csv and no folder {split!r}; leave the split out, or name a folder."
        )
    root = folder / (split or "train")
    files = [
        file
        for file in sorted((root if root.is_dir() else folder).rglob("*"))
        if file.name.endswith(_SUFFIXES) and not file.name.startswith(".")
    ]
    if not files:
        raise FileNotFoundError(f"{folder} holds no NIfTI file (.nii, .nii.gz); put the training volumes there.")
    if len(columns) == 1:
        return [{"subject_id": _stem(file), columns[0]: file} for file in files]
    return _group_by_name(folder, files, columns)


class VolumeDataset(Dataset[dict[str, torch.Tensor]]):
    """Subjects as tensors, each volume brought through its processor.

    Args:
        subjects: What :func:`find_subjects` returns, or any sequence of mappings column → volume (path, NIfTI image,
            array or tensor).
        processors: Column → processor. Only these columns are read.
        cache_dir: Where subjects prepared from files are kept, as safetensors, keyed by file and processor. None keeps
            nothing.
        unit: Unit of the volumes, where a processor asks for it (``"HU"``).

    Items are dicts column → float32 ``(1, x, y, z)`` in the processor's value range.
    """

    def __init__(
        self,
        subjects: Sequence[Mapping[str, Any]],
        processors: Mapping[str, VolumeProcessor],
        *,
        cache_dir: str | Path | None = None,
        unit: str | None = None,
    ) -> None:
        self.subjects = subjects
        self.processors = dict(processors)
        self.cache_dir = Path(cache_dir) if cache_dir is not None else None
        self.unit = unit
        self.indices = list(range(len(subjects)))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._load(self.subjects[self.indices[index]])[0]

    def volumes(self, index: int, columns: Iterable[str]) -> dict[str, Any]:
        """The volumes of a subject as they were given, such as conditions for a pipeline."""
        subject = self.subjects[self.indices[index]]
        return {name: subject[name] for name in columns}

    def check(self, *, skip_bad_files: bool = False) -> list[str]:
        """Read every subject once, before the training starts; afterwards ``grid`` and ``spacing`` are known.

        Args:
            skip_bad_files: Leave unreadable subjects out instead of raising.

        Returns:
            One sentence for each subject that was left out.

        Raises:
            ValueError: If a subject cannot be read and is not to be skipped, none is left, or their grids differ.
        """
        good, problems, grids, spacings = [], [], set(), set()
        for place in track(self.indices, "Reading volumes", console=Console(stderr=True), transient=True):
            subject = self.subjects[place]
            try:
                tensors, spacing = self._load(subject)
                grids.add(_common_grid(tensors))
            except (OSError, ValueError) as error:
                problems.append(f"{subject.get('subject_id', f'subject {place}')}: {str(error).rstrip('.')}")
                continue
            good.append(place)
            spacings.add(spacing)
        if problems and not skip_bad_files:
            raise ValueError(
                f"{len(problems)} of {len(self)} subjects cannot be used ({_first_of(problems)}); repair or remove "
                "them, or pass --skip_bad_files to train without them."
            )
        if not good:
            raise ValueError(f"None of the {len(self)} subjects can be used ({_first_of(problems)}).")
        if len(grids) > 1:
            raise ValueError(
                f"The subjects have different grids ({', '.join(map(str, sorted(grids)[:4]))}); bring them to one with "
                "--resolution or --grids, whichever the script has (and --spacing, where voxel sizes differ)."
            )
        self.indices = good
        self.grid = grids.pop()
        self.spacing = spacings.pop() if len(spacings) == 1 else None
        return problems

    def _load(self, subject: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], tuple[float, ...]]:
        """The tensors of a subject, and the voxel size of its first volume on the grid of the tensors."""
        cached = self._cache_path(subject)
        if cached is not None and cached.exists():
            with safe_open(cached, framework="pt") as file:
                return {name: file.get_tensor(name) for name in self.processors}, _spacing(file.metadata()["spacing"])
        prepared = {name: self._prepare(subject[name], processor) for name, processor in self.processors.items()}
        tensors = {name: tensor for name, (tensor, _) in prepared.items()}
        spacing = next(iter(prepared.values()))[1]
        if cached is not None:
            cached.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(cached) as temporary:
                save_file(tensors, temporary, metadata={"spacing": json.dumps(spacing)})
        return tensors, spacing

    def _prepare(self, volume: Any, processor: VolumeProcessor) -> tuple[torch.Tensor, tuple[float, ...]]:
        tensor, geometry = processor.preprocess(volume, unit=self.unit if processor.unit == "HU" else None)
        edges = np.linalg.norm(np.array(geometry.model_affine)[:3, :3], axis=0)
        return tensor[0], _spacing(json.dumps([round(float(edge), 4) for edge in edges]))

    def _cache_path(self, subject: Mapping[str, Any]) -> Path | None:
        files = [subject[name] for name in self.processors]
        if self.cache_dir is None or not all(isinstance(file, str | Path) and Path(file).is_file() for file in files):
            return None
        sources = [_state_of(Path(file)) for file in files]
        rules = {name: processor.to_dict() for name, processor in self.processors.items()}
        key = json.dumps([__version__, sources, rules, self.unit], sort_keys=True)
        return self.cache_dir / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _read_niftifolder(folder: Path, columns: Sequence[str], split: str) -> list[dict[str, Any]]:
    from datasets import Nifti, load_dataset

    split = {"val": "validation"}.get(split, split)  # `datasets` calls a folder `val` so
    dataset = load_dataset("niftifolder", data_dir=str(folder), split=split)
    volumes = [name for name, feature in dataset.features.items() if isinstance(feature, Nifti)]
    missing = [column for column in columns if column not in volumes]
    if missing:
        raise ValueError(
            f"The metadata of {folder} has no volume {', '.join(missing)}; its volumes are {', '.join(volumes)} (a "
            "column <name>_file_name gives the volume <name>)."
        )
    for column in columns:
        dataset = dataset.cast_column(column, Nifti(decode=False))
    names = dataset["subject_id"] if "subject_id" in dataset.column_names else range(len(dataset))
    rows = dataset.select_columns(list(columns))
    return [
        {"subject_id": str(name), **{column: Path(row[column]["path"]) for column in columns}}
        for name, row in zip(names, rows, strict=True)
    ]


def _group_by_name(folder: Path, files: Sequence[Path], columns: Sequence[str]) -> list[dict[str, Any]]:
    subjects: dict[tuple[Path, str], dict[str, Any]] = {}
    for file in files:
        for column in columns:
            match = re.fullmatch(rf"(|.*[^a-z0-9]){re.escape(column)}", _stem(file), re.IGNORECASE)
            if match:
                name = match[1].strip("-_. ") or file.parent.name
                subjects.setdefault((file.parent, match[1]), {"subject_id": name})[column] = file
    if not subjects:
        raise FileNotFoundError(
            f"{folder} holds no file whose name ends with one of {', '.join(columns)} (the first is {files[0].name}); "
            "name the files like BraTS-0001-t1n.nii.gz, or add a metadata.csv."
        )
    for (directory, beginning), subject in subjects.items():
        missing = [column for column in columns if column not in subject]
        if missing:
            raise ValueError(
                f"{directory} has no {beginning}{missing[0]}.nii.gz; every subject needs one file for each of "
                f"{', '.join(columns)}."
            )
    return list(subjects.values())


def _common_grid(tensors: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    grids = {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}
    if len(set(grids.values())) > 1:
        raise ValueError(f"its volumes lie on different grids, {grids}")
    return next(iter(grids.values()))


def _state_of(file: Path) -> list[Any]:
    status = file.stat()
    return [str(file.resolve()), status.st_size, status.st_mtime_ns]


def _spacing(text: str) -> tuple[float, ...]:
    return tuple(json.loads(text))


def _first_of(problems: Sequence[str]) -> str:
    return "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".nii")
