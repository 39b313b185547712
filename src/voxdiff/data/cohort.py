"""The digital cohort as a data set: subjects simulated on the fly, cached, in splits that share no subject."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset

from voxdiff.data.subject import COHORT_VERSIONS, MR_LEVELS, Subject, check_settings, make_subject
from voxdiff.volumes import atomic_path

__all__ = ["SPLITS", "CohortDataset", "Subject", "make_subject", "split_seeds"]

# First seed of each split. A split holds as many seeds as fit before the next one starts.
SPLIT_SIZE = 10_000_000
SPLITS = {"train": 0, "val": SPLIT_SIZE, "test": 2 * SPLIT_SIZE}


def split_seeds(split: str, num_subjects: int, seed: int = 0) -> range:
    """Subject seeds of a cohort: `num_subjects` consecutive ones, starting `seed` places into the split's own range.

    Splits own disjoint ranges of ten million seeds, so two splits never share a subject. Within a split, cohorts whose
    `seed` differ by less than their number of subjects do.

    Raises:
        ValueError: unknown split, no subjects, or a range that leaves the split's own.
    """
    if split not in SPLITS:
        raise ValueError(f"The split is {split!r}; choose one of {', '.join(SPLITS)}.")
    if num_subjects < 1:
        raise ValueError(f"The number of subjects is {num_subjects}; ask for at least 1.")
    if seed < 0 or seed + num_subjects > SPLIT_SIZE:
        raise ValueError(
            f"Seed {seed} with {num_subjects} subjects leaves the split's range; seed must be at least 0 and seed plus "
            f"subjects at most {SPLIT_SIZE}, lower one of them."
        )
    start = SPLITS[split] + seed
    return range(start, start + num_subjects)


class CohortDataset(Dataset[dict[str, Any]]):
    """Simulated subjects as a map-style data set.

    An item is a dict: each contrast ("t1", …; "ct" in HU) float32 (1, x, y, z), MR in [0, 1]; each label map
    ("tissue", "lesion"; "organs" for CT) uint8 (1, x, y, z); "subject_id", "seed", and "factors", the known ground
    truth in ml and mm.

    Args:
        num_subjects: number of subjects.
        split: "train", "val" or "test"; splits never share a subject.
        size: voxels a side.
        seed: where in the split's range to start.
        contrasts: MR contrasts of each subject.
        lesions: give each subject a tumour (MR only).
        modality: "mr" or "ct".
        template: force one brain template, e.g. to hold the other out.
        cache_dir: folder that keeps the subjects across runs.
        cache: keep subjects in memory, at 2 bytes a voxel and image and 1 a label map. Workers each keep their own.

    Raises:
        ValueError: settings that no cohort can have.
    """

    def __init__(
        self,
        num_subjects: int,
        *,
        split: str = "train",
        size: int = 64,
        seed: int = 0,
        contrasts: Sequence[str] = ("t1",),
        lesions: bool = False,
        modality: str = "mr",
        template: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache: bool = True,
    ) -> None:
        check_settings(size=size, contrasts=contrasts, lesions=lesions, template=template, modality=modality)
        self.seeds = split_seeds(split, num_subjects, seed)
        self.split = split
        self.size = size
        self.contrasts = tuple(contrasts) if modality == "mr" else ("ct",)
        self.lesions = lesions
        self.modality = modality
        self.template = template
        self.cache_dir = Path(cache_dir) / self._settings_name() if cache_dir is not None else None
        self._memory: dict[int, _StoredSubject] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> dict[str, Any]:
        seed = self.seeds[index]
        stored = self._memory.get(seed) if self._memory is not None else None
        if stored is None:
            stored = self._load_or_make(index)
            if self._memory is not None:
                self._memory[seed] = stored
        return stored.item(seed, self.modality)

    def subject(self, index: int) -> Subject:
        """The subject at `index`, simulated anew."""
        return make_subject(
            self.seeds[index],
            size=self.size,
            contrasts=self.contrasts if self.modality == "mr" else (),
            lesions=self.lesions,
            template=self.template,
            modality=self.modality,
        )

    def _settings_name(self) -> str:
        parts = [COHORT_VERSIONS[self.modality], str(self.size), "+".join(self.contrasts)]
        return "-".join([*parts, *(["lesions"] if self.lesions else []), *([self.template] if self.template else [])])

    def _load_or_make(self, index: int) -> "_StoredSubject":
        if self.cache_dir is None:
            return _StoredSubject.from_subject(self.subject(index))
        path = self.cache_dir / f"{subject_id(self.seeds[index])}.safetensors"
        if path.exists():
            return _StoredSubject.load(path)
        stored = _StoredSubject.from_subject(self.subject(index))
        stored.save(path)
        return stored


class _StoredSubject:
    """A subject in its stored integers: MR in 12 bits, CT in HU. Nothing is lost, see `Subject.images`."""

    def __init__(
        self, images: dict[str, torch.Tensor], labels: dict[str, torch.Tensor], factors: dict[str, Any]
    ) -> None:
        self.images = images
        self.labels = labels
        self.factors = factors

    @classmethod
    def from_subject(cls, subject: Subject) -> "_StoredSubject":
        levels = MR_LEVELS if subject.modality == "mr" else 1
        images = {name: (image * levels).round().to(torch.int16) for name, image in subject.images.items()}
        return cls(images, dict(subject.labels), dict(subject.factors))

    def item(self, seed: int, modality: str) -> dict[str, Any]:
        levels = MR_LEVELS if modality == "mr" else 1
        images = {name: (image.float() / levels)[None] for name, image in self.images.items()}
        labels = {name: label[None].clone() for name, label in self.labels.items()}
        return {**images, **labels, "subject_id": subject_id(seed), "seed": seed, "factors": dict(self.factors)}

    def save(self, path: Path) -> None:
        tensors = {f"image.{name}": image for name, image in self.images.items()}
        tensors |= {f"label.{name}": label for name, label in self.labels.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"factors": json.dumps(self.factors)})

    @classmethod
    def load(cls, path: Path) -> "_StoredSubject":
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
                factors = json.loads(file.metadata()["factors"])
        except SafetensorError as error:
            raise ValueError(f"The cached subject {path} cannot be read ({error}); delete the file.") from error
        images = {name.removeprefix("image."): value for name, value in tensors.items() if name.startswith("image.")}
        labels = {name.removeprefix("label."): value for name, value in tensors.items() if name.startswith("label.")}
        return cls(images, labels, factors)


def subject_id(seed: int) -> str:
    """Name of a seed's subject, e.g. "sim-00000017"."""
    return f"sim-{seed:08d}"
