"""The folder of a re-sampled data set: what it was made with, and what came of each volume.

``manifest.json`` is written before the first volume and names all of them. A volume counts as done once its record,
``<name>.json``, is there; the record appears after the volume's other files. A run that was killed is continued by
starting it again, and gives the same files as an unbroken one.
"""

import csv
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nibabel as nib
import torch
from torch import nn

from voxdiff import __version__
from voxdiff.volumes import atomic_path
from voxdiff.workflows.enhancement_plan import PlannedVolume

MANIFEST_FILE = "manifest.json"
METADATA_FILE = "metadata.csv"
_FORMAT = 1
_OF_THE_RUN = ("seconds", "peak_memory_mb")  # they would make two runs of the same volumes differ


class ResampledFolder:
    """A folder that belongs to one run: a command, its settings, and its planned volumes.

    Args:
        folder: Created if it is missing; one begun with the same settings is continued.
        settings: Plain values; all that the files depend on.
        planned: The volumes.

    Raises:
        ValueError: The folder holds something else, was begun with other settings, or these are not plain values.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], planned: Sequence[PlannedVolume]) -> None:
        self.folder = Path(folder)
        try:
            self.settings = json.loads(json.dumps(settings))
        except TypeError as error:
            raise ValueError(
                f"A setting cannot be written to {MANIFEST_FILE} ({error}); give plain numbers."
            ) from error
        self.planned = list(planned)
        self._claim()

    def is_done(self, item: PlannedVolume) -> bool:
        """Whether the volume was made, or made and rejected."""
        return self._record_path(item).exists()

    def write(
        self,
        item: PlannedVolume,
        image: nib.Nifti1Image,
        mask: nib.Nifti1Image,
        record: dict[str, Any],
        *,
        rejected: bool,
    ) -> None:
        """Write the image, its mask and its record; of a rejected volume the record only."""
        record = {**item.describe(), "rejected": rejected, **record}
        if "provenance" in record:
            record["provenance"] = lasting_provenance(record["provenance"])
        with ExitStack() as stack:  # what is entered first appears last
            _write_json(stack.enter_context(atomic_path(self._record_path(item))), record)
            if not rejected:
                for path, volume in zip(self.volume_paths(item), (image, mask), strict=True):
                    nib.save(
                        nib.Nifti1Image(volume.dataobj, volume.affine, volume.header),
                        stack.enter_context(atomic_path(path)),
                    )

    def volume_paths(self, item: PlannedVolume) -> tuple[Path, Path]:
        """Where the image and the mask of a volume are, unless it was rejected."""
        return self.folder / f"{item.name}_image.nii.gz", self.folder / f"{item.name}_mask.nii.gz"

    def records(self) -> list[dict[str, Any]]:
        """Of all planned volumes, in their order.

        Raises:
            FileNotFoundError: If one is not done.
        """
        return [json.loads(self._record_path(item).read_text(encoding="utf-8")) for item in self.planned]

    def finish(self) -> list[dict[str, Any]]:
        """Write ``metadata.csv``, which makes the folder a data set, and the whole manifest; returns the records."""
        records = self.records()
        rows = [
            {
                "image_file_name": f"{record['name']}_image.nii.gz",
                "mask_file_name": f"{record['name']}_mask.nii.gz",
                "subject_id": record["name"],
                "mask_subject": record["subject"],
                "slice_subject": record["slice_from_subject"] or "",
                "synthetic": True,
            }
            for record in records
            if not record["rejected"]
        ]
        if rows:
            with (
                atomic_path(self.folder / METADATA_FILE) as temporary,
                temporary.open("w", newline="", encoding="utf-8") as file,
            ):
                writer = csv.DictWriter(file, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        volumes = [{key: value for key, value in record.items() if key != "provenance"} for record in records]
        self._write_manifest(complete=True, volumes=volumes)
        return records

    def _claim(self) -> None:
        path = self.folder / MANIFEST_FILE
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; give a folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        present = [found for found in self.folder.iterdir() if not _is_unfinished(found)]
        if present and not path.exists():
            raise ValueError(
                f"The folder {self.folder} is not empty and has no {MANIFEST_FILE}; give an empty or new one."
            )
        if present not in ([], [path]):  # settings that gave no volume bind nobody
            self._require_same_settings(json.loads(path.read_text(encoding="utf-8")))
        else:
            self._write_manifest(complete=False, volumes=[item.describe() for item in self.planned])
        remove_unfinished(self.folder)

    def _require_same_settings(self, manifest: dict[str, Any]) -> None:
        present = manifest.get("settings") if manifest.get("format") == _FORMAT else None
        if present is None:
            raise ValueError(
                f"{self.folder} holds no manifest that this version of voxdiff reads; give another folder."
            )
        for name in sorted({*present, *self.settings}):
            before, now = present.get(name), self.settings.get(name)
            if before != now:
                raise ValueError(
                    f"The folder {self.folder} was begun with {name} {before!r} and {now!r} is asked for now; use the "
                    "same settings, or another folder."
                )

    def _write_manifest(self, *, complete: bool, volumes: list[dict[str, Any]]) -> None:
        manifest: dict[str, Any] = {
            "format": _FORMAT,
            "voxdiff_version": __version__,
            "settings": self.settings,
            "complete": complete,
        }
        if complete:
            rejected = [volume for volume in volumes if volume["rejected"]]
            manifest["accepted"] = len(volumes) - len(rejected)
            manifest["rejections"] = [
                {
                    "name": volume["name"],
                    "reasons": [check["reason"] for check in volume["checks"] if check["rejected"]],
                }
                for volume in rejected
            ]
        with atomic_path(self.folder / MANIFEST_FILE) as temporary:
            _write_json(temporary, {**manifest, "volumes": volumes})

    def _record_path(self, item: PlannedVolume) -> Path:
        return self.folder / f"{item.name}.json"


def lasting_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a volume without what differs between two runs that make the same one."""
    return {key: value for key, value in provenance.items() if key not in _OF_THE_RUN}


def model_hash(pipe: Any) -> str:
    """SHA-256 of a pipeline's class, configuration and components: whatever changes its volumes changes it."""
    digest = hashlib.sha256(json.dumps([type(pipe).__name__, _plain_config(pipe.config)], default=str).encode())
    for name, component in sorted(pipe.components.items()):
        config = _plain_config(getattr(component, "config", {}))
        digest.update(json.dumps([name, type(component).__name__, config], default=str).encode())
        if isinstance(component, nn.Module):
            for key, tensor in sorted(component.state_dict().items()):
                digest.update(f"{key} {tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain_config(config: Any) -> list[tuple[str, Any]]:
    return sorted((key, value) for key, value in dict(config).items() if not key.startswith("_"))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _is_unfinished(path: Path) -> bool:
    return path.name.startswith(".tmp-")


def remove_unfinished(folder: Path) -> None:
    """What a killed run was writing."""
    for path in filter(_is_unfinished, folder.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
