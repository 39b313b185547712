"""Arguments on the training data that every method shares, and the data set they describe."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from voxdiff.data.anatomy import BRAIN_FOV_MM
from voxdiff.data.cohort import CohortDataset
from voxdiff.data.ct_anatomy import CT_FOV_MM, ORGANS
from voxdiff.data.volume_dataset import VolumeDataset, find_subjects
from voxdiff.training.arguments import option
from voxdiff.volume_files import make_image
from voxdiff.volumes import VolumeProcessor, centred_affine

COHORTS: dict[str, tuple[dict[str, Any], float, str]] = {
    "mr": ({"low": 0.0, "high": 1.0, "unit": "a.u."}, BRAIN_FOV_MM, "t1"),
    "ct": ({"low": -1000.0, "high": 1000.0, "unit": "HU"}, CT_FOV_MM, "ct"),
}
"""Modality of the digital cohort -> intensity window, field of view in mm, and the volume learnt by default."""
COHORT_LABELS = {"mr": {"tissue": 3, "lesion": 3}, "ct": {"organs": len(ORGANS)}}

_OF_FILES = ("spacing", "intensity", "low", "high", "unit")
_OF_THE_MODEL = ("image_columns", "condition_columns", "label_columns", "resolution", *_OF_FILES[:-1])


@dataclass
class DataArguments:
    """Which volumes are learnt, and how they are brought to the network's grid and range.

    None means that an option was not given.
    """

    train_data_dir: str | None = option(None, "Folder of NIfTI files, or a niftifolder data set with metadata.csv.")
    split: str | None = option(None, "Split of the data set, or of the cohort (train, val, test); default: train.")
    cohort: str | None = option(None, "Train on the simulated digital cohort instead: mr or ct.")
    num_subjects: int | None = option(None, "Subjects of the cohort; default: 1000.")
    image_columns: str | None = option(None, "Volumes to generate, comma-separated; default: image (cohort: t1 or ct).")
    condition_columns: str | None = option(None, "Volumes the result is conditioned on (paired translation).")
    label_columns: str | None = option(None, "Which of these are label maps, with their highest label: lesion=3.")
    resolution: str | None = option(None, "Grid of the volumes: one number or x,y,z; default: the volumes' own.")
    spacing: str | None = option(None, "Voxel size in mm: one number or x,y,z; default: the volumes' own.")
    intensity: str | None = option(None, "percentile (MR, the default), window (CT) or minmax.")
    low: float | None = option(None, "Lower percentile, or lower end of the window in HU.")
    high: float | None = option(None, "Upper percentile, or upper end of the window in HU.")
    unit: str | None = option(None, "State HU for CT volumes whose lowest value is not negative.")
    skip_bad_files: bool = option(False, "Train without the volumes that cannot be read.")
    cache_dir: str | None = option(None, "Where prepared volumes are kept; default: OUTPUT_DIR/cache.")

    def __post_init__(self) -> None:
        if (self.train_data_dir is None) == (self.cohort is None):
            raise ValueError(
                "Give the training data as either --train_data_dir DIR, with NIfTI files, or --cohort mr (or ct) for "
                "the simulated cohort."
            )
        if self.cohort is None:
            refuse(self, ["num_subjects"], "belongs to --cohort")
        elif self.cohort not in COHORTS:
            raise ValueError(f"--cohort is {self.cohort!r}; choose one of {', '.join(COHORTS)}.")
        else:
            refuse(self, _OF_FILES, "belongs to --train_data_dir, the cohort has its own")
            if self.skip_bad_files:
                raise ValueError("--skip_bad_files belongs to --train_data_dir, the cohort has no files; leave it out.")

    def require_no_model_options(self) -> None:
        """Raise ValueError if an option was given that a pretrained model decides."""
        refuse(self, _OF_THE_MODEL, "comes from the pretrained model")

    @property
    def volume_names(self) -> tuple[list[str], list[str]]:
        """Generated volumes and conditions."""
        default = COHORTS[self.cohort][2] if self.cohort else "image"
        outputs, conditions = names(self.image_columns) or [default], names(self.condition_columns)
        if len({*outputs, *conditions}) < len(outputs) + len(conditions):
            raise ValueError(
                f"--image_columns {','.join(outputs)} and --condition_columns {','.join(conditions)} share a name."
            )
        return outputs, conditions

    @property
    def labels(self) -> dict[str, int]:
        """Label maps among the volumes, with their highest label; those of the cohort are known."""
        known = {name for kind in self.volume_names for name in kind}
        labels = {key: value for key, value in COHORT_LABELS.get(self.cohort or "", {}).items() if key in known}
        for item in names(self.label_columns):
            name, _, highest = item.partition("=")
            if name not in known or not highest.isdigit():
                raise ValueError(
                    f"--label_columns has {item!r}; write NAME=HIGHEST for one of {', '.join(sorted(known))}, such "
                    "as lesion=3."
                )
            labels[name] = int(highest)
        return labels

    def make_processor(self) -> VolumeProcessor:
        """The processor of a model that is trained from nothing on these data."""
        size, spacing = triple("resolution", self.resolution, int), triple("spacing", self.spacing, float)
        if self.cohort is None:
            rule = self.intensity or "percentile"
            return VolumeProcessor(size=size, spacing=spacing, intensity=rule, low=self.low, high=self.high)
        if size is None or len(set(size)) > 1:
            raise ValueError(
                f"The cohort is drawn on cubes, --resolution is {self.resolution}; give one number, such as 64."
            )
        window, field_of_view, _ = COHORTS[self.cohort]
        return VolumeProcessor(size=size, spacing=(field_of_view / size[0],) * 3, intensity="window", **window)

    def make_dataset(self, processors: Mapping[str, VolumeProcessor], cache_dir: Path) -> VolumeDataset:
        """The volumes that the processors are named after.

        Raises:
            OSError, ValueError: The data are missing or do not fit, see :mod:`voxdiff.data.volume_dataset`.
        """
        if self.unit is not None and all(processor.unit != "HU" for processor in processors.values()):
            raise ValueError(f"--unit {self.unit} belongs to a model in HU (--intensity window); leave it out.")
        if self.cohort is not None:
            return VolumeDataset(self._make_cohort(processors, cache_dir), processors, unit=self.known_unit)
        assert self.train_data_dir is not None
        subjects = find_subjects(self.train_data_dir, list(processors), split=self.split)
        return VolumeDataset(subjects, processors, cache_dir=cache_dir, unit=self.known_unit)

    def describe(self, count: int) -> str:
        """What a model card says of the data."""
        if self.cohort is not None:
            return f"{count} subjects of voxdiff's simulated {self.cohort.upper()} cohort; no real patient is in it"
        return f"{count} subjects of the folder `{Path(self.train_data_dir or '').resolve().name}`"

    @property
    def known_unit(self) -> str | None:
        """The unit of the volumes, where it is known."""
        return "HU" if self.cohort == "ct" else self.unit

    def _make_cohort(self, processors: Mapping[str, VolumeProcessor], cache_dir: Path) -> "CohortVolumes":
        assert self.cohort is not None
        processor = next(iter(processors.values()))
        field_of_view, labels = COHORTS[self.cohort][1], COHORT_LABELS[self.cohort]
        size = (triple("resolution", self.resolution, int) or (0,))[0]
        if not size:  # a pretrained model: draw about as finely as it sees
            edge = min(processor.spacing or (field_of_view / max(processor.size or (64,)),))
            size = min(max(2 * round(field_of_view / edge / 2), 16), 256)
        images = [name for name in processors if name not in labels]
        cohort = CohortDataset(
            1000 if self.num_subjects is None else self.num_subjects,
            split=self.split or "train",
            size=size,
            contrasts=(images or ["t1"]) if self.cohort == "mr" else (),
            lesions="lesion" in processors,
            modality=self.cohort,
            cache_dir=cache_dir,
        )
        return CohortVolumes(cohort, list(processors), field_of_view / size)


class CohortVolumes(Sequence[dict[str, Any]]):
    """Subjects of the cohort as NIfTI images, which know their voxel size."""

    def __init__(self, cohort: CohortDataset, columns: list[str], edge_mm: float) -> None:
        self.cohort = cohort
        self.columns = columns
        self.edge_mm = edge_mm
        missing = [name for name in columns if name not in cohort[0]]
        if missing:
            raise ValueError(f"The {cohort.modality} cohort has no volume {', '.join(missing)}; choose others.")

    def __len__(self) -> int:
        return len(self.cohort)

    def __getitem__(self, index):
        item = self.cohort[index]
        affine = centred_affine((self.cohort.size,) * 3, "RAS", (self.edge_mm,) * 3)
        images = {name: make_image(item[name][0].numpy(), affine) for name in self.columns}
        return {"subject_id": item["subject_id"], **images}


def refuse(arguments: Any, options: Sequence[str], reason: str) -> None:
    """Raise ValueError if one of the options was given, that is, is not None."""
    for name in options:
        if asdict(arguments)[name] is not None:
            raise ValueError(f"--{name} {reason}; leave it out.")


def names(text: str | None) -> list[str]:
    """Items of a comma-separated list."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def numbers(option_name: str, text: str, kind: type) -> list:
    """Numbers of a comma-separated list.

    Raises:
        ValueError: If one of them is no number of that kind.
    """
    try:
        return [kind(item) for item in names(text)]
    except ValueError as error:
        wanted = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"--{option_name} is {text!r}; give {wanted} separated by commas.") from error


def triple(option_name: str, text: str | None, kind: type) -> tuple | None:
    """One number for all axes or three, None if the option was not given.

    Raises:
        ValueError: If it is neither.
    """
    if text is None:
        return None
    values = numbers(option_name, text, kind)
    if len(values) not in (1, 3) or min(values) <= 0:
        raise ValueError(f"--{option_name} is {text!r}; give one number above 0, or three (x,y,z).")
    return tuple(values * 3 if len(values) == 1 else values)
