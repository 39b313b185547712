from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from voxdiff.volume_files import make_image
from voxdiff.volumes import save_volumes

pydicom = pytest.importorskip("pydicom")

A = np.deg2rad(20)
OBLIQUE = np.array([[np.cos(A), -2 * np.sin(A), 0, 5], [np.sin(A), 2 * np.cos(A), 0, -8], [0, 0, 3, 11], [0, 0, 0, 1]])


def read_series(folder):
    """World millimetres (RAS) and value of every pixel, from the DICOM attributes alone."""
    points, values = [], []
    for path in sorted(folder.iterdir()):
        slice_ = pydicom.dcmread(path)
        along_row, along_column = np.reshape([float(v) for v in slice_.ImageOrientationPatient], (2, 3))
        row_step, column_step = (float(v) for v in slice_.PixelSpacing)
        rows, columns = np.indices((slice_.Rows, slice_.Columns))
        lps = (
            np.array([float(v) for v in slice_.ImagePositionPatient])
            + columns[..., None] * column_step * along_row
            + rows[..., None] * row_step * along_column
        )
        points.append((lps * [-1, -1, 1]).reshape(-1, 3))
        values.append((slice_.pixel_array * float(slice_.RescaleSlope) + float(slice_.RescaleIntercept)).ravel())
    return np.concatenate(points), np.concatenate(values)


@pytest.mark.parametrize("unit", ["HU", "a.u."])
@pytest.mark.parametrize("code", ["RAS", "LPS", "SRP", "AIL"])
def test_a_series_lies_where_the_nifti_lies(tmp_path, unit, code):
    values = np.random.default_rng(0).uniform(-1000, 1000, (4, 5, 6)).astype(np.float32)
    values = values if unit == "HU" else values / 2000 + 0.5
    image = make_image(values, OBLIQUE)
    target = nib.orientations.axcodes2ornt(code)
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), target))
    image = make_image(np.asarray(image.dataobj), image.affine, unit=unit)
    save_volumes(SimpleNamespace(volumes=[image], provenance=[{}]), tmp_path, dicom=True)
    points, stored = read_series(tmp_path / "volume-0000-dicom")
    index = np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), points)).astype(int)
    np.testing.assert_allclose(nib.affines.apply_affine(image.affine, index), points, atol=1e-4)
    assert len({tuple(place) for place in index}) == values.size
    step = 0.5 if unit == "HU" else 1 / 32767
    np.testing.assert_allclose(stored, np.asarray(image.dataobj)[tuple(index.T)], atol=step * 1.01)


def test_every_slice_says_that_it_is_synthetic(tmp_path):
    image = make_image(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.eye(4), unit="label")
    save_volumes(SimpleNamespace(volumes=[image], provenance=[{}]), tmp_path, dicom=True)
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "volume-0000-dicom").iterdir())]
    assert [slice_.SyntheticData for slice_ in slices] == ["YES"] * 4
    assert [slice_.InstanceNumber for slice_ in slices] == [1, 2, 3, 4]
    assert len({slice_.SOPInstanceUID for slice_ in slices}) == 4
    assert len({slice_.SeriesInstanceUID for slice_ in slices}) == 1
    _, stored = read_series(tmp_path / "volume-0000-dicom")
    np.testing.assert_array_equal(np.sort(stored), np.arange(24))


def test_what_a_series_cannot_hold_explains_itself(tmp_path):
    sheared = np.eye(4)
    sheared[0, 2] = 0.4
    for image, message in (
        (make_image(np.zeros((3, 3, 3), np.float32), sheared), "affine is sheared"),
        (make_image(np.zeros((3, 3, 3, 2), np.float32), np.eye(4)), "holds one 3D volume"),
    ):
        with pytest.raises(ValueError, match=message):
            save_volumes(SimpleNamespace(volumes=[image], provenance=[{}]), tmp_path, dicom=True)
    assert not list(tmp_path.iterdir())


def test_missing_pydicom_explains_itself(tmp_path, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "voxdiff.volume_dicom", raising=False)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    output = SimpleNamespace(volumes=[make_image(np.zeros((3, 3, 3), np.float32), np.eye(4))], provenance=[{}])
    with pytest.raises(ImportError, match=r"needs pydicom, which is missing; run: pip install 'voxdiff\[dicom\]'"):
        save_volumes(output, tmp_path, dicom=True)
    assert not list(tmp_path.iterdir())
