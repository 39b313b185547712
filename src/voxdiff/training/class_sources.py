"""Volumes by class and grid, before they are encoded: of the digital cohort, or of files with metadata."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from voxdiff.data.cohort import CohortDataset, subject_id
from voxdiff.data.metadata import read_columns
from voxdiff.data.mr_signal import MR_CONTRASTS
from voxdiff.data.subject import COHORT_VERSIONS
from voxdiff.data.volume_dataset import VolumeDataset, find_subjects
from voxdiff.training.data_arguments import COHORTS, CohortVolumes
from voxdiff.volumes import VolumeProcessor

Grid = tuple[int, int, int]

COHORT_CLASSES = {name: (name, column) for name, (_, _, column) in COHORTS.items()}
COHORT_CLASSES |= {contrast: ("mr", contrast) for contrast in MR_CONTRASTS}
"""What a class of the digital cohort is called -> its modality and volume."""


@dataclass(frozen=True)
class VolumeSource:
    """Volumes of one class on one grid.

    Attributes:
        dataset: The volumes, by their only column.
        processor: How they are brought to the grid, which is its size.
        keys: For each volume a text that no other voxels have: a subject of the cohort, or a file with size and time.
        scalars: For each volume what is known of it, name -> value.
        class_name: None for a model without classes.
    """

    dataset: VolumeDataset
    processor: VolumeProcessor
    keys: Sequence[str]
    scalars: Sequence[Mapping[str, float]]
    class_name: str | None

    def __len__(self) -> int:
        return len(self.dataset)

    def volume(self, index: int) -> torch.Tensor:
        """The volume ``(1, x, y, z)`` in the processor's value range."""
        (volume,) = self.dataset[index].values()
        return volume


def cohort_source(
    name: str, grid: Grid, cache_dir: Path, *, num_subjects: int, split: str, scalar_names: Sequence[str]
) -> VolumeSource:
    """Subjects of the digital cohort on a grid that spans the field of view along its longest side.

    Args:
        name: A key of :data:`COHORT_CLASSES`.
        grid: Voxels along x, y and z; the longest side is even.
        cache_dir: Where simulated subjects are kept.
        num_subjects: Number of subjects.
        split: Split of the cohort.
        scalar_names: Factors of the cohort that are wanted; a cohort without one gives none.

    Raises:
        ValueError: If the cohort cannot be drawn so.
    """
    modality, column = COHORT_CLASSES[name]
    window, field_of_view, _ = COHORTS[modality]
    cohort = CohortDataset(
        num_subjects,
        split=split,
        size=max(grid),
        contrasts=(column,) if modality == "mr" else (),
        modality=modality,
        cache_dir=cache_dir,
        cache=False,
    )
    edge = field_of_view / max(grid)
    processor = VolumeProcessor(size=grid, spacing=(edge,) * 3, intensity="window", **window)
    volumes = CohortVolumes(cohort, [column], edge)
    return VolumeSource(
        dataset=VolumeDataset(volumes, {column: processor}, unit=processor.unit),
        processor=processor,
        keys=[f"{COHORT_VERSIONS[modality]}/{column}/{subject_id(seed)}" for seed in cohort.seeds],
        scalars=[_known(cohort[index]["factors"], scalar_names) for index in range(len(cohort))]
        if scalar_names
        else [{}] * len(cohort),
        class_name=name,
    )


def file_sources(
    folder: str,
    column: str,
    wanted: Sequence[tuple[str | None, VolumeProcessor]],
    *,
    split: str | None,
    class_column: str | None,
    scalar_names: Sequence[str],
    unit: str | None,
    skip_bad_files: bool,
    cache_dir: Path,
) -> tuple[list[VolumeSource], list[str]]:
    """Files of a folder, a source for each class and processor; the files of a source are read once to check them.

    Args:
        folder: Folder that :func:`voxdiff.data.volume_dataset.find_subjects` understands.
        column: Name of the volumes.
        wanted: Pairs of a class, None without classes, and a processor.
        split: Split of the data set.
        class_column: Metadata column of the class, None without classes.
        scalar_names: Metadata columns of the scalars; an empty field is not known.
        unit: Unit of the volumes, where a processor asks for it.
        skip_bad_files: Leave out what cannot be read.
        cache_dir: Where the prepared volumes are kept.

    Returns:
        The sources, and a sentence for each volume that was left out.

    Raises:
        OSError, ValueError: If the data are missing or do not fit, such as voxel sizes that differ within a source for
            which no spacing was asked.
    """
    subjects = find_subjects(folder, [column], split=split)
    columns = [*([class_column] if class_column else []), *scalar_names]
    metadata = read_columns(folder, columns, split=split) if columns else {}
    classes = [str(value) for value in metadata[class_column]] if class_column else [None] * len(subjects)
    known = list(dict.fromkeys(name for name, _ in wanted))
    for name in classes:
        if name not in known:
            raise ValueError(
                f"{folder} has the class {name}, but the classes are {', '.join(map(str, known))}; add it."
            )
    sources, left_out = [], []
    for name, processor in wanted:
        places = [place for place, value in enumerate(classes) if value == name]
        if not places:
            raise ValueError(f"{folder} has no volume of the class {name}; leave the class out, or add volumes.")
        files = [subjects[place] for place in places]
        dataset = VolumeDataset(files, {column: processor}, cache_dir=cache_dir, unit=unit)
        left_out += dataset.check(skip_bad_files=skip_bad_files)
        if processor.spacing is None and dataset.spacing is None:
            raise ValueError(
                f"The volumes{f' of the class {name}' if name else ''} have different voxel sizes; give --spacing (or a "
                "spacing in the file of --classes) to bring them to one."
            )
        kept = [places[index] for index in dataset.indices]
        source = VolumeSource(
            dataset=dataset,
            processor=replace(processor, size=dataset.grid, spacing=processor.spacing or dataset.spacing),
            keys=[file_state(subjects[place][column]) for place in kept],
            scalars=[_known({key: metadata[key][place] for key in scalar_names}, scalar_names) for place in kept],
            class_name=name,
        )
        sources.append(source)
    return sources, list(dict.fromkeys(left_out))


def classes_of(folder: str, class_column: str, split: str | None) -> list[str]:
    """The classes in a metadata column, sorted; numbers by their value.

    Raises:
        ValueError: If there is no such column, or a field of it is empty.
    """
    values = read_columns(folder, [class_column], split=split)[class_column]
    empty = sum(value is None for value in values)
    if empty:
        raise ValueError(f"Column {class_column} of {folder} is empty for {empty} volumes; give each a class.")
    return sorted({str(value) for value in values}, key=lambda name: (not name.isdecimal(), name.zfill(20)))


def _known(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """The numbers among the named values; what is absent, empty or NaN is left out."""
    known = {}
    for name in names:
        value = row.get(name)
        if value is None or value == "":
            continue
        try:
            number = float(value)
        except ValueError as error:
            raise ValueError(
                f"The scalar {name} is {value!r} for a volume; give a number, or leave it empty."
            ) from error
        if math.isinf(number):
            raise ValueError(f"The scalar {name} is infinite for a volume; give finite numbers.")
        if not math.isnan(number):
            known[name] = number
    return known


def file_state(file: str | Path) -> str:
    """Path, size and time of a file: what changes when its voxels do."""
    path = Path(file).resolve()
    status = path.stat()
    return f"{path}:{status.st_size}:{status.st_mtime_ns}"
