"""Reading and writing volumes: NIfTI files, their records, and three-plane pictures.

Whatever is written appears under its name only once it is complete, so that a full disk or a killed process leaves the
previous file as it was.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image, ImageDraw

_UNREADABLE = (EOFError, OSError, ValueError, zlib.error, nib.filebasedimages.ImageFileError)
_DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_DESCRIPTION = "voxdiff; unit="
# Pictures: the usual soft-tissue window for CT, these percentiles for anything else
_SOFT_TISSUE_HU = (-160.0, 240.0)
_PICTURE_PERCENTILES = (0.5, 99.5)
_PANEL_PIXELS = 256


def load_volume(
    path_or_image: str | Path | nib.spatialimages.SpatialImage, *, allow_nan: bool = False
) -> nib.Nifti1Image:
    """Reads one complete 3D volume into memory.

    Args:
        path_or_image: Any file that nibabel reads (`.nii`, `.nii.gz`, `.mgz`, ...), or a nibabel image.
        allow_nan: Whether NaN and infinite voxels are let through, for a caller that uses a part of the volume.

    Returns:
        The image with its voxels in memory, whole numbers as stored, others as float32. A 4D image of one frame loses
        its last axis. The affine is untouched.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated or no image; or the image is not 3D, empty, or not finite, or has no usable
            affine.
    """
    if isinstance(path_or_image, nib.spatialimages.SpatialImage):
        image: Any = path_or_image
        name = "The image"
    else:
        path = Path(path_or_image)
        name = f"The volume {str(path)!r}"
        if not path.is_file():
            found = "The folder {!r} is no file" if path.is_dir() else "There is no file {!r}"
            raise FileNotFoundError(f"{found.format(str(path))}; give the path of a NIfTI volume.")
        try:
            image = nib.load(path)
        except _UNREADABLE as error:
            raise ValueError(f"{name} cannot be read ({_reason(error)}); give a complete NIfTI file.") from error
        if not isinstance(image, nib.spatialimages.SpatialImage):
            raise ValueError(f"{name} is a {type(image).__name__}; give a NIfTI volume.")
    try:
        values = np.asarray(image.dataobj)
    except _UNREADABLE as error:
        raise ValueError(f"{name} is damaged or truncated ({_reason(error)}); copy or download it again.") from error
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    check_values(values, name, allow_nan=allow_nan)
    affine = np.asarray(image.affine, dtype=float) if image.affine is not None else np.eye(4)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ValueError(f"{name} has an affine that does not place its voxels in the world; repair its header.")
    header = nib.Nifti1Header.from_header(image.header)
    length_unit = header.get_xyzt_units()[0]
    if length_unit in ("meter", "micron"):
        raise ValueError(f"{name} gives its voxel size in {length_unit}s; convert its affine to mm.")
    stored: np.dtype[Any] = values.dtype.newbyteorder("=")
    if values.dtype.kind in "fb":
        stored = np.dtype(np.float32 if values.dtype.kind == "f" else np.uint8)
    return nib.Nifti1Image(values.astype(stored), affine, header, dtype=stored)


def check_values(values: np.ndarray, name: str, *, allow_nan: bool = False) -> None:
    """Raises a ValueError unless the array is 3D, not empty, real and, unless it need not be, finite."""
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{name} holds {values.dtype} voxels; give one real number a voxel.")
    if values.ndim != 3:
        raise ValueError(
            f"{name} has shape {values.shape}; give a 3D volume (x, y, z), one frame or channel at a time."
        )
    if values.size == 0:
        raise ValueError(f"{name} is empty, its shape is {values.shape}; give at least one voxel along each axis.")
    if not allow_nan and not np.isfinite(values).all():
        count = int(values.size - np.isfinite(values).sum())
        raise ValueError(f"{name} holds {count} NaN or infinite voxels; replace them with a number first.")


def make_image(
    values: np.ndarray, affine: np.ndarray, *, unit: str | None = None, space_code: int = 2
) -> nib.Nifti1Image:
    """An image in mm with both its sform and its qform set, the intensity unit in its description.

    A sheared affine has no qform; its qform code is then 0.
    """
    values = values.astype(np.uint8) if values.dtype == bool else values
    values = values.astype(np.float32) if values.dtype == np.float16 else values
    header = nib.Nifti1Header()
    header.set_data_shape(values.shape)
    header.set_xyzt_units("mm")
    header["descrip"] = f"{_DESCRIPTION}{unit}" if unit else ""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    rigid = np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
    header.set_qform(affine, code=space_code if rigid else 0, strip_shears=True)
    header.set_sform(affine, code=space_code)
    return nib.Nifti1Image(values, affine, header, dtype=values.dtype)


def intensity_unit(image: nib.Nifti1Image) -> str | None:
    """The intensity unit that voxdiff wrote into the image's header ("HU", "a.u.", "label"), None in other images."""
    description = image.header["descrip"].item().decode("latin-1")
    return description.removeprefix(_DESCRIPTION) if description.startswith(_DESCRIPTION) else None


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write a file or folder to, which then takes the place of `path`.

    The temporary name keeps the ending of `path`. If the body raises, what it wrote is removed and `path` is as it was.
    A file is replaced in one step; a folder that exists already is moved aside first.

    Raises:
        OSError: The disk is full or failing, in one sentence that names `path`.

    Example:
        >>> with atomic_path("record.json") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("{}")
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        for written in [*temporary.rglob("*"), temporary]:
            _flush(written)
        if temporary.is_dir() and path.is_dir():
            previous = temporary.with_name(f"{temporary.name}-previous")
            os.replace(path, previous)
            try:
                os.replace(temporary, path)
            except BaseException:
                os.replace(previous, path)
                raise
            shutil.rmtree(previous)
        else:
            os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        if error.errno in _DISK_TROUBLE:
            text = f"Could not write {str(path)!r}, which is as it was before ({os.strerror(error.errno)}); make room."
            raise OSError(error.errno, text) from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def save_volumes(
    output: Any,
    directory: str | Path,
    *,
    prefix: str = "volume",
    first_index: int = 0,
    png: bool = False,
    dicom: bool = False,
) -> list[Path]:
    """Writes each volume of a pipeline's output as NIfTI with its record beside it.

    Volume i becomes `<prefix>-000i.nii.gz`, its record `<prefix>-000i.json`. None of the files of a volume appears
    before all of them are written.

    Args:
        output: Has `.volumes`, a list of `nibabel.Nifti1Image`, and `.provenance`, one record a volume.
        directory: Created if missing.
        prefix: How the names begin.
        first_index: Number of the first volume, where several calls fill one directory.
        png: Also write a three-plane picture, `<prefix>-000i.png`.
        dicom: Also write a DICOM series into the folder `<prefix>-000i-dicom`.

    Returns:
        The paths of the NIfTI files.

    Raises:
        ValueError: The output holds no images, not one record a volume, or a record that is not JSON.
        OSError: The disk is full; files of an earlier run under these names are as they were.
    """
    volumes, records = list(output.volumes), list(output.provenance)
    if not all(isinstance(volume, nib.Nifti1Image) for volume in volumes):
        raise ValueError(
            "The output holds no NIfTI images; call the pipeline with output_type='nifti' to save volumes."
        )
    if len(volumes) != len(records):
        raise ValueError(f"The output has {len(volumes)} volumes and {len(records)} records; give one record a volume.")
    if not prefix or Path(prefix).name != prefix:
        raise ValueError(f"prefix is {prefix!r}; give the beginning of a file name, without a folder.")
    texts = [_record_text(record, index) for index, record in enumerate(records)]
    if dicom:
        from voxdiff.volume_dicom import write_dicom_series
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (image, text) in enumerate(zip(volumes, texts, strict=True), first_index):
        name = f"{prefix}-{index:04d}"
        with contextlib.ExitStack() as stack:
            volume_path = stack.enter_context(atomic_path(directory / f"{name}.nii.gz"))
            # a wrapper of its own, so that the caller's image does not remember the temporary name
            nib.save(nib.Nifti1Image(image.dataobj, image.affine, image.header), volume_path)
            stack.enter_context(atomic_path(directory / f"{name}.json")).write_text(text, encoding="utf-8")
            if png:
                _draw(image).save(stack.enter_context(atomic_path(directory / f"{name}.png")))
            if dicom:
                folder = stack.enter_context(atomic_path(directory / f"{name}-dicom"))
                write_dicom_series(image, folder, unit=intensity_unit(image))
        paths.append(directory / f"{name}.nii.gz")
    return paths


def three_plane_png(image: nib.Nifti1Image, path: str | Path, *, window: tuple[float, float] | None = None) -> None:
    """Writes a picture of the middle axial, coronal and sagittal slices side by side.

    Radiological convention: the patient's right is on the left of the axial and coronal slices, anterior is up in the
    axial slice, superior up in the other two, anterior on the left of the sagittal slice. A millimetre is equally long
    in all directions. Channels of a 4D image are rows.

    Args:
        image: A volume in any orientation; an oblique one is shown along its own axes.
        path: A `.png` file.
        window: Values shown as black and white. By default -160 to 240 for an image in HU, 0 to the highest label for
            labels, and the 0.5 and 99.5 percentiles otherwise.
    """
    with atomic_path(path) as temporary:
        _draw(image, window).save(temporary)


def _draw(image: nib.Nifti1Image, window: tuple[float, float] | None = None) -> Image.Image:
    canonical = nib.as_closest_canonical(image)
    spacing = canonical.header.get_zooms()[:3]
    values = np.asarray(canonical.dataobj)
    values = values[..., None] if values.ndim == 3 else values
    scale = _PANEL_PIXELS / max(count * step for count, step in zip(values.shape[:3], spacing, strict=True))
    unit, rows = intensity_unit(image), []
    for channel in np.moveaxis(values, -1, 0):
        low, high = window or _picture_window(channel, unit)
        grey = (np.clip((channel.astype(float) - low) / max(high - low, 1e-12), 0, 1) * 255).round().astype(np.uint8)
        x, y, z = (count // 2 for count in grey.shape)
        panels = []
        # image rows run down and columns right, so every anatomical axis but none of the file's is turned round
        for plane, axes, mark in ((grey[:, :, z], (0, 1), "R"), (grey[:, y], (0, 2), "R"), (grey[x], (1, 2), "A")):
            pixels = [max(1, round(plane.shape[i] * spacing[axis] * scale)) for i, axis in enumerate(axes)]
            smooth = Image.Resampling.NEAREST if unit == "label" else Image.Resampling.BILINEAR
            panel = Image.new("L", (pixels[0], _PANEL_PIXELS))
            resized = Image.fromarray(np.ascontiguousarray(plane[::-1, ::-1].T)).resize((pixels[0], pixels[1]), smooth)
            panel.paste(resized, (0, (_PANEL_PIXELS - pixels[1]) // 2))
            ImageDraw.Draw(panel).text((4, _PANEL_PIXELS // 2 - 6), mark, fill=160)
            panels.append(panel)
        rows.append(panels)
    picture = Image.new("L", (sum(panel.width for panel in rows[0]), _PANEL_PIXELS * len(rows)))
    for index, panels in enumerate(rows):
        left = 0
        for panel in panels:
            picture.paste(panel, (left, index * _PANEL_PIXELS))
            left += panel.width
    return picture


def _picture_window(values: np.ndarray, unit: str | None) -> tuple[float, float]:
    if unit == "HU":
        return _SOFT_TISSUE_HU
    if unit == "label":
        return 0.0, float(values.max())
    low, high = np.percentile(values, _PICTURE_PERCENTILES)
    return float(low), float(high)


def _record_text(record: Mapping[str, Any], index: int) -> str:
    try:
        return json.dumps(record, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The record of volume {index} is not plain JSON ({error}); use strings and numbers."
        ) from error


def _flush(path: Path) -> None:
    """Waits until a file's contents, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """The first sentence of an error message."""
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
