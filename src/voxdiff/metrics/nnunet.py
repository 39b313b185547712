"""Export in nnU-Net v2's raw format, so that the field's reference segmentation can be trained on any volumes.

Source of the format: nnU-Net's documentation/dataset_format.md, and its own ``verify_dataset_integrity`` (2.8.1), which
passes on an exported cohort.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from voxdiff.volume_files import make_image
from voxdiff.volumes import atomic_path, load_volume

FILE_ENDINGS = (".nii.gz", ".nii")
_AFFINE_TOLERANCE_MM = 1e-3
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_CASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_RESERVED = ("background", "ignore")

Labels = Mapping[str, int | Sequence[int]]


def export_nnunet(
    subjects: Sequence[Mapping[str, Any]],
    out_dir: str | Path,
    *,
    dataset_id: int,
    dataset_name: str,
    channel_names: Mapping[str, str],
    labels: Labels,
    file_ending: str = ".nii.gz",
    test_subjects: Sequence[Mapping[str, Any]] = (),
    label_key: str = "label",
) -> Path:
    """Write `out_dir/DatasetXXX_Name` with imagesTr, labelsTr, imagesTs and dataset.json.

    The folder appears under its name only when it is complete. One that holds the same export already is left as it is.
    Label maps take the affine of their image, which they must match within 0.001 mm, channel by channel.

    Args:
        subjects: training cases: a ``subject_id``, a volume (path or NIfTI image) a channel, and a label map.
        out_dir: the folder that nnU-Net knows as ``nnUNet_raw``.
        dataset_id: 1 to 999; nnU-Net keeps 1 to 10 for the Medical Segmentation Decathlon.
        dataset_name: letters, digits, "-" and "_".
        channel_names: key of a subject → nnU-Net's name of the channel, in order. The name decides the normalisation:
            "CT" is clipped and scaled over the data set, "noNorm" left alone, any other one z-scored.
        labels: name → value, consecutive from "background": 0. Or name → several values, a region; regions run from
            large to small, as in BraTS, so that ``regions_class_order`` follows. "ignore" may take the highest value.
        file_ending: ".nii.gz" or ".nii".
        test_subjects: cases for imagesTs; their label maps are not read.
        label_key: key of the label map.

    Returns:
        The path of the data set.

    Raises:
        ValueError: names, labels or geometry that nnU-Net would refuse or misread, or a folder with other content.
        FileNotFoundError: a volume is missing.
    """
    given: dict[str, Any] = {"channel_names": channel_names, "labels": labels, "file_ending": file_ending}
    folder = check_export(out_dir, dataset_id=dataset_id, dataset_name=dataset_name, **given)
    keys = list(channel_names)
    _check_subjects(subjects, [*keys, label_key], test_subjects, keys)
    text = json.dumps(_dataset_json(len(subjects), **given), indent=2) + "\n"
    _refuse_other_content(folder, text)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder) as temporary:
        for name in ("imagesTr", "labelsTr", "imagesTs"):
            (temporary / name).mkdir(parents=True)
        for subject in subjects:
            reference = _write_channels(subject, keys, temporary / "imagesTr", file_ending)
            label_map = _label_map(subject, label_key, reference, _values(labels))
            nib.save(label_map, temporary / "labelsTr" / f"{subject['subject_id']}{file_ending}")
        for subject in test_subjects:
            _write_channels(subject, keys, temporary / "imagesTs", file_ending)
        (temporary / "dataset.json").write_text(text, encoding="utf-8")
        if folder.is_dir() and any(folder.iterdir()) and _contents(folder) != _contents(temporary):
            raise ValueError(f"{folder} holds another export; remove it, or give another dataset_id or folder.")
    return folder


def check_export(
    out_dir: str | Path,
    *,
    dataset_id: int,
    dataset_name: str,
    channel_names: Mapping[str, str],
    labels: Labels,
    file_ending: str = ".nii.gz",
    values: Iterable[int] = (),
) -> Path:
    """The folder of an export, before there is anything to export.

    Args:
        values: Of the label maps that are to come.

    The other arguments and the errors are those of :func:`export_nnunet`.
    """
    if isinstance(dataset_id, bool) or not isinstance(dataset_id, int) or not 1 <= dataset_id <= 999:
        raise ValueError(f"dataset_id is {dataset_id!r}; give a whole number from 1 to 999.")
    if not _NAME.fullmatch(dataset_name):
        raise ValueError(f"dataset_name is {dataset_name!r}; use letters, digits, '-' and '_'.")
    if file_ending not in FILE_ENDINGS:
        raise ValueError(f"file_ending is {file_ending!r}; allowed are {', '.join(FILE_ENDINGS)}.")
    description = _dataset_json(1, channel_names, labels, file_ending)
    if unexpected := sorted(set(values) - _values(labels)):
        raise ValueError(f"The label maps hold {_listing(unexpected)}; {_allowed(_values(labels))}")
    folder = Path(out_dir) / f"Dataset{dataset_id:03d}_{dataset_name}"
    present = folder / "dataset.json"
    if present.is_file():  # any number of cases
        described = json.loads(present.read_text(encoding="utf-8"))
        description["numTraining"] = described.get("numTraining")
    _refuse_other_content(folder, json.dumps(description, indent=2) + "\n")
    return folder


def _listing(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values[:5])


def _allowed(labels: set[int]) -> str:
    return f"the labels are {sorted(labels)}, name or remap the others."


def _dataset_json(num_training: int, channel_names: Mapping[str, str], labels: Labels, file_ending: str) -> dict:
    """The content of dataset.json."""
    if not channel_names or len(set(channel_names.values())) < len(channel_names):
        raise ValueError(f"channel_names is {dict(channel_names)}; give at least one channel, each name once.")
    values = sorted(_values(labels))
    if labels.get("background") != 0 or values != list(range(len(values))) or len(values) < 2:
        raise ValueError(f"labels is {dict(labels)}; give 'background': 0 and consecutive values 1, 2, … without gaps.")
    plain = {name: value if isinstance(value, int) else list(value) for name, value in labels.items()}
    description: dict[str, Any] = {
        "channel_names": {str(place): name for place, name in enumerate(channel_names.values())},
        "labels": plain,
        "numTraining": num_training,
        "file_ending": file_ending,
        "converted_by": "voxdiff export-nnunet",
    }
    if any(isinstance(value, list) and len(value) > 1 for value in plain.values()):
        description["regions_class_order"] = _regions_class_order(labels)
    return description


def _values(labels: Labels) -> set[int]:
    return {int(value) for entry in labels.values() for value in ([entry] if isinstance(entry, int) else entry)}


def _regions_class_order(labels: Labels) -> list[int]:
    """The label that each region adds to the smaller ones: what nnU-Net paints, region after region."""
    regions = {
        name: {entry} if isinstance(entry, int) else set(entry)
        for name, entry in labels.items()
        if name not in _RESERVED
    }
    order: list[int] = []
    names = list(regions)
    for place, name in enumerate(names):
        own = regions[name].difference(*(regions[later] for later in names[place + 1 :]))
        if len(own) != 1:
            raise ValueError(
                f"The region {name!r} adds the labels {sorted(own)} to those after it; list the regions from large to "
                "small so that each adds exactly one label."
            )
        order += own
    return order


def _check_subjects(
    subjects: Sequence[Mapping[str, Any]], keys: list[str], tests: Sequence[Mapping[str, Any]], test_keys: list[str]
) -> None:
    """Raise ValueError unless every case has a name of its own and all of its volumes."""
    if not subjects:
        raise ValueError("There are no training subjects; give at least one.")
    names: set[str] = set()
    for subject, wanted in [(item, keys) for item in subjects] + [(item, test_keys) for item in tests]:
        name = str(subject.get("subject_id", ""))
        if not _CASE.fullmatch(name):
            raise ValueError(f"The subject_id is {name!r}; use letters, digits, '.', '-' and '_'.")
        if name in names:
            raise ValueError(f"The subject_id {name!r} comes twice, and a case is in training or test once; rename it.")
        names.add(name)
        missing = [key for key in wanted if key not in subject]
        if missing:
            raise ValueError(f"Subject {name} lacks {', '.join(missing)}; give a volume for each of {wanted}.")


def _write_channels(subject: Mapping[str, Any], keys: Sequence[str], folder: Path, ending: str) -> nib.Nifti1Image:
    """Write a case's channels on the grid of the first one, which is returned."""
    name, reference = subject["subject_id"], load_volume(subject[keys[0]])
    for channel, key in enumerate(keys):
        image = reference if channel == 0 else load_volume(subject[key])
        require_same_grid(image, reference, f"channel {key!r}", name)
        values = np.asarray(image.dataobj)
        if values.dtype.itemsize > 2:
            values = values.astype(np.float32)  # SimpleITK has no filters for 64-bit integers
        written = make_image(values, reference.affine)
        if written.header["qform_code"] == 0:
            raise ValueError(f"Subject {name} has a sheared affine, which nnU-Net cannot read; resample it first.")
        nib.save(written, folder / f"{name}_{channel:04d}{ending}")
    return reference


def _label_map(subject: Mapping[str, Any], key: str, reference: nib.Nifti1Image, allowed: set[int]) -> nib.Nifti1Image:
    name, image = subject["subject_id"], load_volume(subject[key])
    require_same_grid(image, reference, "the label map", name)
    values = np.asarray(image.dataobj)
    unexpected = sorted(set(np.unique(values).tolist()) - allowed)
    if unexpected:
        raise ValueError(f"The label map of subject {name} holds {_listing(unexpected)}; {_allowed(allowed)}")
    return make_image(values.astype(np.uint8 if max(allowed) < 256 else np.uint16), reference.affine)


def require_same_grid(
    image: nib.spatialimages.SpatialImage, reference: nib.spatialimages.SpatialImage, what: str, name: str
) -> None:
    """Raise ValueError, about the `what` of subject `name`, unless both images lie on one grid within 0.001 mm."""
    if image.shape != reference.shape:
        raise ValueError(
            f"Subject {name}: {what} has the shape {image.shape} and its image {reference.shape}; resample one to the other."
        )
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(image.shape) - 1)
    distance = nib.affines.apply_affine(image.affine, corners) - nib.affines.apply_affine(reference.affine, corners)
    apart = float(np.linalg.norm(distance, axis=1).max())
    if apart > _AFFINE_TOLERANCE_MM:
        raise ValueError(
            f"Subject {name}: {what} lies up to {apart:.3g} mm away from its image; resample one to the other."
        )


def _refuse_other_content(folder: Path, text: str) -> None:
    """Before any volume is read: a folder that cannot hold the same export."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give another folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    present = folder / "dataset.json"
    if not present.is_file() or present.read_text(encoding="utf-8") != text:
        raise ValueError(f"{folder} is not empty and holds another data set; remove it, or give another dataset_id.")


def _contents(folder: Path) -> dict[str, bytes]:
    """Relative path → SHA-256 of every file."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                contents[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").digest()
    return contents
