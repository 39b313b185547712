"""The digital cohort as a folder of NIfTI files that `datasets` reads.

The layout is `OUT/cohort.json` (settings), and for each split `OUT/<split>/metadata.csv` with the volumes,
`<subject>_<volume>.nii.gz`, and `<subject>.json` (the subject's row, written once its volumes are complete). Load it
with `datasets.load_dataset("niftifolder", data_dir=OUT)`; it calls the split "val" "validation".
"""

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from voxdiff.data.cohort import split_seeds, subject_id
from voxdiff.data.subject import COHORT_VERSIONS, MR_LEVELS, Subject, check_settings, make_subject
from voxdiff.volumes import atomic_path, make_image


def write_cohort(
    out: str | os.PathLike[str],
    num_subjects: int,
    split: str = "train",
    *,
    size: int = 64,
    seed: int = 0,
    contrasts: Sequence[str] = ("t1",),
    lesions: bool = False,
    modality: str = "mr",
    template: str | None = None,
    on_subject: Callable[[], None] | None = None,
) -> Path:
    """Write simulated subjects into `out/<split>/`, as NIfTI files in mm with a metadata.csv.

    A folder that was begun with the same settings is continued: complete subjects are kept. The settings are those of
    `CohortDataset`; `on_subject` is called after each subject.

    Returns:
        The path of metadata.csv.

    Raises:
        ValueError: settings that no cohort can have, or a folder that was begun with other settings.
    """
    check_settings(size=size, contrasts=contrasts, lesions=lesions, template=template, modality=modality)
    seeds = split_seeds(split, num_subjects, seed)
    names = tuple(dict.fromkeys(contrasts)) if modality == "mr" else ("ct",)
    shared = {
        "cohort_version": COHORT_VERSIONS[modality],
        "simulated": True,
        "modality": modality,
        "size": size,
        "contrasts": list(names),
        "lesions": lesions,
    }
    _claim_folder(Path(out), shared, split, {"seed": seed, "template": template})
    folder = Path(out) / split
    folder.mkdir(exist_ok=True)
    rows = []
    for subject_seed in seeds:
        row = _finished_row(folder, subject_seed)
        if row is None:
            subject = make_subject(
                subject_seed, size=size, contrasts=names, lesions=lesions, template=template, modality=modality
            )
            row = _write_subject(folder, split, subject)
        rows.append(row)
        if on_subject is not None:
            on_subject()
    metadata = folder / "metadata.csv"
    with atomic_path(metadata) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return metadata


def _claim_folder(out: Path, shared: dict[str, Any], split: str, own: dict[str, Any]) -> None:
    """Record the settings in `out/cohort.json`, or check that they are those recorded there."""
    path = out / "cohort.json"
    recorded: dict[str, Any] = {**shared, "splits": {}}
    if path.exists():
        try:
            recorded = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON ({error}); delete the folder or choose another.") from error
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"The folder {out} is not empty and holds no cohort; choose an empty or new one.")
    elif out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose a folder.")
    wanted = {**shared, **own}
    present = {**recorded, **recorded.get("splits", {}).get(split, own)}
    for name, value in wanted.items():
        if present.get(name) != value:
            raise ValueError(
                f"The folder {out} was begun with {name} {present.get(name)!r} and {value!r} is asked for now; "
                "use the same settings or another folder."
            )
    out.mkdir(parents=True, exist_ok=True)
    recorded["splits"][split] = own
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")


def _finished_row(folder: Path, seed: int) -> dict[str, Any] | None:
    """The row of a subject whose files are all there, otherwise None."""
    record = folder / f"{subject_id(seed)}.json"
    if not record.exists():
        return None
    row: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    files = [folder / value for name, value in row.items() if name.endswith("_file_name")]
    return row if all(file.exists() for file in files) else None


def _write_subject(folder: Path, split: str, subject: Subject) -> dict[str, Any]:
    """Write the volumes of a subject, then its record; returns its row of metadata.csv."""
    identifier = subject_id(subject.seed)
    row: dict[str, Any] = {}
    for name, image in _nifti_images(subject).items():
        row[f"{name}_file_name"] = f"{identifier}_{name}.nii.gz"
        with atomic_path(folder / row[f"{name}_file_name"]) as temporary:
            nib.save(image, temporary)
    row |= {"subject_id": identifier, "seed": subject.seed, "split": split, **_rounded(subject.factors)}
    row |= {"cohort_version": COHORT_VERSIONS[subject.modality], "simulated": True}
    with atomic_path(folder / f"{identifier}.json") as temporary:
        temporary.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    return row


def _nifti_images(subject: Subject) -> dict[str, nib.Nifti1Image]:
    """The volumes of a subject as 16-bit images and 8-bit label maps."""
    images = {}
    levels = MR_LEVELS if subject.modality == "mr" else 1
    for name, values in subject.images.items():
        stored = (values * levels).round().numpy().astype(np.int16)
        images[name] = make_image(stored, subject.affine, unit=subject.unit)
        images[name].header.set_slope_inter(1 / levels, 0)  # nibabel writes the voxels as they are when this is set
    for name, values in subject.labels.items():
        images[name] = make_image(values.numpy(), subject.affine, unit="label")
    note = f"simulated, {COHORT_VERSIONS[subject.modality]}, seed {subject.seed}"
    for image in images.values():
        image.header["intent_name"] = "simulated"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", note.encode()))
    return images


def _rounded(factors: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in factors.items()}
