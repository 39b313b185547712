"""Writing a synthetic volume as a DICOM series, marked as synthetic."""

from pathlib import Path

import nibabel as nib
import numpy as np

try:
    from pydicom import dcmwrite
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
except ImportError as error:
    raise ImportError("Writing DICOM needs pydicom, which is missing; run: pip install 'voxdiff[dicom]'.") from error

# Values are stored as 16-bit whole numbers: HU as they are, anything else in this many steps of its range
_STEPS = 32767


def write_dicom_series(image: nib.Nifti1Image, directory: str | Path, *, unit: str | None = None) -> list[Path]:
    """Writes one file a slice, axial as far as the volume's own axes allow, with SyntheticData (0008,001C) = YES.

    HU become CT Image Storage in steps of 1 HU, anything else MR Image Storage in 32,767 steps of its range.

    Args:
        image: A 3D volume; its affine may be oblique, not sheared.
        directory: A folder that does not exist yet.
        unit: Intensity unit of the voxels.

    Returns:
        The paths, from inferior to superior.

    Raises:
        ValueError: The volume is not 3D, or its affine is sheared.
    """
    if image.ndim != 3:
        raise ValueError(
            f"The volume has shape {image.shape}; a DICOM series holds one 3D volume, save channels one by one."
        )
    # rows of a slice run to the patient's left, columns to posterior, slices to superior
    target = nib.orientations.axcodes2ornt(("L", "P", "S"))
    turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), target)
    turned = image.as_reoriented(turn)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ turned.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / spacing
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        raise ValueError("The volume's affine is sheared, which DICOM slices cannot express; resample it first.")
    stored, slope, intercept = _whole_numbers(np.asarray(turned.dataobj), unit)

    directory = Path(directory)
    directory.mkdir(parents=True)
    shared = _series_header(unit, axes, spacing, slope, intercept)
    paths = []
    for index in range(stored.shape[2]):
        dataset = Dataset()
        dataset.update(shared)
        dataset.InstanceNumber = index + 1
        dataset.Columns, dataset.Rows = stored.shape[:2]
        dataset.SOPInstanceUID = generate_uid()
        dataset.ImagePositionPatient = _decimals(lps @ [0, 0, index, 1])[:3]
        dataset.PixelData = np.ascontiguousarray(stored[:, :, index].T).tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        paths.append(directory / f"slice-{index:04d}.dcm")
        dcmwrite(paths[-1], dataset, enforce_file_format=True)
    return paths


def _whole_numbers(values: np.ndarray, unit: str | None) -> tuple[np.ndarray, float, float]:
    """The values as little-endian int16, with the slope and intercept that give them back."""
    whole = values.dtype.kind in "iub" and np.iinfo(np.int16).min <= values.min() <= values.max() <= _STEPS
    if unit == "HU" or whole:
        return np.clip(np.rint(values), -_STEPS - 1, _STEPS).astype("<i2"), 1.0, 0.0
    low, high = float(values.min()), float(values.max())
    # the decimal string that is written, not the binary number, is what a reader multiplies with
    slope = float(_decimals([(high - low) / _STEPS or 1.0])[0])
    intercept = float(_decimals([low])[0])
    return np.clip(np.rint((values - intercept) / slope), 0, _STEPS).astype("<i2"), slope, intercept


def _series_header(unit: str | None, axes: np.ndarray, spacing: np.ndarray, slope: float, intercept: float) -> Dataset:
    """What all slices share."""
    modality, storage = ("CT", CTImageStorage) if unit == "HU" else ("MR", MRImageStorage)
    header = Dataset()
    header.SOPClassUID = storage
    header.SyntheticData = "YES"
    header.Modality = modality
    header.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if modality == "CT" else "OTHER"]
    header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    header.PatientID = header.PatientName = "SYNTHETIC"
    header.SeriesDescription = "voxdiff synthetic volume"
    header.Manufacturer = "voxdiff"
    for empty in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
        setattr(header, empty, "")
    header.ReferringPhysicianName = header.PositionReferenceIndicator = ""
    header.SeriesNumber = 1
    header.BurnedInAnnotation = "NO"
    header.ImageOrientationPatient = _decimals([*axes[:, 0], *axes[:, 1]])
    header.PixelSpacing = _decimals([spacing[1], spacing[0]])
    header.SliceThickness = header.SpacingBetweenSlices = _decimals([spacing[2]])[0]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    header.RescaleSlope, header.RescaleIntercept = _decimals([slope, intercept])
    header.RescaleType = "HU" if unit == "HU" else "US"
    return header


def _decimals(values: object) -> list[str]:
    """DICOM decimal strings: at most 16 characters."""
    return [np.format_float_scientific(value, precision=9, trim="-", exp_digits=1) for value in np.asarray(values)]
