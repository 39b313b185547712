"""Training data from files: subjects of a folder or a `niftifolder` data set, prepared once and cached."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from voxdiff.volumes import VolumeProcessor, atomic_path

NIFTI_SUFFIXES = (".nii.gz", ".nii")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def find_subjects(folder: str | Path, columns: Sequence[str], *, split: str = "train") -> Sequence[Mapping[str, Any]]:
    """List the subjects of a folder as mappings column → volume.

    A folder with a ``metadata.csv`` (or ``.jsonl``) is read as a `niftifolder` data set: one column a contrast
    (``t1_file_name`` gives ``t1``) and splits from ``train/``, ``test/`` folders. Any other folder is searched for NIfTI
    files: with one column every file is a subject; with several, the files of one directory are a subject and a file
    belongs to the column its name ends with (``BraTS-0001-t1n.nii.gz`` to ``t1n``).

    Args:
        folder: The folder.
        columns: Names of the volumes each subject must have.
        split: Split of a `niftifolder` data set.

    Raises:
        FileNotFoundError: If the folder or its volumes are missing.
        ValueError: If the data set has no such column, or a subject lacks a volume.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"The data folder {folder} does not exist; give a folder of .nii.gz files.")
    if any(next(folder.rglob(name), None) for name in _METADATA):
        return load_nifti_dataset("niftifolder", columns, split=split, data_dir=str(folder))
    files = sorted(file for file in folder.rglob("*") if file.name.endswith(NIFTI_SUFFIXES))
    if not files:
        raise FileNotFoundError(f"{folder} holds no NIfTI file (.nii, .nii.gz); put the training volumes there.")
    if len(columns) == 1:
        return [{"subject_id": _stem(file), columns[0]: file} for file in files]
    return [_subject_of(directory, files, columns) for directory in sorted({file.parent for file in files})]


def load_nifti_dataset(name: str, columns: Sequence[str], *, split: str = "train", **options: Any):
    """Load a data set with NIfTI columns through Hugging Face `datasets`: ``niftifolder``, a folder or a Hub name.

    Raises:
        ValueError: If a column is missing.
    """
    from datasets import load_dataset

    dataset = load_dataset(name, split=split, **options)
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The data set {options.get('data_dir', name)} has no column {', '.join(missing)}; its columns are "
            f"{', '.join(dataset.column_names)}."
        )
    return dataset.select_columns([*columns, *(["subject_id"] if "subject_id" in dataset.column_names else [])])


class VolumeDataset(Dataset):
    """Subjects as tensors, each volume brought through its processor.

    Args:
        subjects: What :func:`find_subjects` returns, or any sequence of mappings column → volume (path, NIfTI image,
            array or tensor).
        processors: Column → processor. Only these columns are read.
        cache_dir: Where prepared subjects are kept (safetensors, keyed by processors and source); None keeps nothing.
        unit: Unit of the volumes where a processor asks for it.

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
        self.cache_dir = Path(cache_dir) if cache_dir else None
        self.unit = unit
        self.indices = list(range(len(subjects)))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        place = self.indices[index]
        cached = self._cache_path(place)
        if cached is not None and cached.exists():
            return load_file(cached)
        subject = self.subjects[place]
        tensors = {name: self._prepare(subject[name], processor) for name, processor in self.processors.items()}
        if cached is not None:
            cached.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(cached) as temporary:
                save_file(tensors, temporary)
        return tensors

    def check(self, *, skip_bad_files: bool = False) -> list[str]:
        """Read every subject once, before the training starts.

        Args:
            skip_bad_files: Leave unreadable subjects out instead of raising.

        Returns:
            One sentence for each subject that was left out.

        Raises:
            ValueError: If a subject cannot be read and is not to be skipped, none is left, or their grids differ.
        """
        good, problems, grids = [], [], {}
        for position, place in enumerate(self.indices):
            try:
                grids.setdefault(tuple(next(iter(self[position].values())).shape[1:]), place)
                good.append(place)
            except (OSError, ValueError, EOFError) as error:
                problems.append(f"{self._name(place)}: {error}")
        if problems and not skip_bad_files:
            raise ValueError(
                f"{len(problems)} of {len(self)} subjects cannot be used ({'; '.join(problems[:3])}); repair or remove "
                "them, or pass --skip_bad_files to train without them."
            )
        if not good:
            raise ValueError(f"None of the {len(self)} subjects can be used ({'; '.join(problems[:3])}).")
        if len(grids) > 1:
            raise ValueError(
                f"The subjects have different grids ({', '.join(map(str, sorted(grids)[:4]))}); give one grid with "
                "--resolution (and --spacing where voxel sizes differ)."
            )
        self.indices = good
        return problems

    def _prepare(self, volume: Any, processor: VolumeProcessor) -> torch.Tensor:
        unit = self.unit if processor.unit == "HU" else None
        if isinstance(volume, torch.Tensor) and volume.ndim == 4:  # (1, x, y, z), an item of another data set
            volume = volume[0]
        return processor.preprocess(volume, unit=unit)[0][0]

    def _name(self, place: int) -> str:
        subject = self.subjects[place] if isinstance(self.subjects, list) else {}
        return str(subject.get("subject_id", f"subject {place}"))

    def _cache_path(self, place: int) -> Path | None:
        if self.cache_dir is None:
            return None
        source = [self._source(place, name) for name in self.processors]
        rules = {name: processor.to_dict() for name, processor in self.processors.items()}
        key = json.dumps([source, rules, self.unit], sort_keys=True)
        return self.cache_dir / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"

    def _source(self, place: int, name: str) -> list[Any]:
        if not isinstance(self.subjects, list):
            return [getattr(self.subjects, "_fingerprint", type(self.subjects).__name__), place, name]
        volume = self.subjects[place][name]
        if not isinstance(volume, (str, Path)):
            return [place, name]
        status = Path(volume).stat()
        return [str(Path(volume).resolve()), status.st_size, status.st_mtime_ns]


def _subject_of(directory: Path, files: Sequence[Path], columns: Sequence[str]) -> dict[str, Any]:
    own = [file for file in files if file.parent == directory]
    subject: dict[str, Any] = {"subject_id": directory.name}
    for column in columns:
        matches = [file for file in own if _stem(file).lower().endswith(column.lower())]
        if len(matches) != 1:
            raise ValueError(
                f"{directory} has {len(matches)} files whose name ends with {column!r} (its files: "
                f"{', '.join(file.name for file in own)}); every subject needs exactly one for each of {', '.join(columns)}."
            )
        subject[column] = matches[0]
    return subject


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".nii")
