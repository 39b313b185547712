import errno
import gzip
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from voxdiff.volume_files import make_image
from voxdiff.volumes import atomic_path, intensity_unit, load_volume, save_volumes, three_plane_png

AFFINE = np.array([[-1.0, 0, 0, 20], [0, 2, 0, -30], [0, 0, 3, 5], [0, 0, 0, 1]])


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(0, 100, (6, 7, 8)).astype(np.float32)


@pytest.fixture
def output(values):
    images = [make_image(values + shift, AFFINE, unit="HU") for shift in (0, 5)]
    return SimpleNamespace(volumes=images, provenance=[{"seed": 3, "steps": 50}, {"seed": 4, "steps": 50}])


def names(directory):
    return sorted(path.name for path in directory.iterdir())


# --- load_volume


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz"])
def test_load_returns_what_was_saved(tmp_path, values, suffix):
    cls = nib.MGHImage if suffix == ".mgz" else nib.Nifti1Image
    nib.save(cls(values, AFFINE), tmp_path / f"volume{suffix}")
    image = load_volume(tmp_path / f"volume{suffix}")
    assert isinstance(image, nib.Nifti1Image)
    assert image.in_memory or isinstance(image.dataobj, np.ndarray)
    np.testing.assert_array_equal(image.dataobj, values)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "int64", "float32", "float64", ">f4"])
def test_load_keeps_whole_numbers_and_makes_the_rest_float32(dtype):
    image = load_volume(nib.Nifti1Image(np.arange(24).reshape(2, 3, 4).astype(dtype), AFFINE, dtype=dtype))
    expected = np.dtype(np.float32) if np.dtype(dtype).kind == "f" else np.dtype(dtype).newbyteorder("=")
    assert image.dataobj.dtype == image.get_data_dtype() == expected
    np.testing.assert_array_equal(np.asarray(image.dataobj).ravel(), np.arange(24))


def test_load_applies_the_stored_scaling(tmp_path, values):
    image = nib.Nifti1Image(values, AFFINE)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "scaled.nii.gz")
    loaded = load_volume(tmp_path / "scaled.nii.gz")
    np.testing.assert_allclose(loaded.dataobj, values, atol=0.01)
    nib.save(loaded, tmp_path / "again.nii.gz")
    np.testing.assert_array_equal(load_volume(tmp_path / "again.nii.gz").dataobj, loaded.dataobj)


def test_load_squeezes_one_frame_only(values):
    assert load_volume(nib.Nifti1Image(values[..., None], AFFINE)).shape == values.shape
    assert load_volume(nib.Nifti1Image(values[:, :, :1], AFFINE)).shape == (6, 7, 1)
    with pytest.raises(ValueError, match=r"The image has shape \(6, 7, 8, 2\); give a 3D volume"):
        load_volume(nib.Nifti1Image(np.stack([values, values], -1), AFFINE))


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_file_is_named(tmp_path, values, suffix, keep):
    path = tmp_path / f"volume{suffix}"
    nib.save(nib.Nifti1Image(values, AFFINE), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ValueError, match=rf"The volume '{re.escape(str(path))}' (is damaged|cannot be read)") as error:
        load_volume(path)
    assert "\n" not in str(error.value)


def test_a_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "volume.nii.gz"
    path.write_bytes(gzip.compress(b"not a volume" * 100))
    with pytest.raises(ValueError, match=r"volume.nii.gz' cannot be read"):
        load_volume(path)
    with pytest.raises(
        FileNotFoundError, match=r"There is no file '.*missing.nii.gz'; give the path of a NIfTI volume"
    ):
        load_volume(tmp_path / "missing.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"The folder '.*' is no file; give the path of a NIfTI volume"):
        load_volume(tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "picture.png")
    with pytest.raises(ValueError, match=r"picture.png' cannot be read"):
        load_volume(tmp_path / "picture.png")


def test_a_bad_volume_is_named(tmp_path, values):
    values[1, 2, 3] = np.nan
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "holes.nii.gz")
    with pytest.raises(ValueError, match=r"holes.nii.gz' holds 1 NaN or infinite voxels"):
        load_volume(tmp_path / "holes.nii.gz")
    with pytest.raises(ValueError, match="an affine that does not place its voxels in the world"):
        load_volume(nib.spatialimages.SpatialImage(np.zeros((2, 2, 2), np.uint8), np.diag([1.0, 1, 0, 1])))
    small = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    small.header.set_xyzt_units("micron")
    with pytest.raises(ValueError, match="voxel size in microns; convert its affine to mm"):
        load_volume(small)
    colour = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ValueError, match="give one real number a voxel"):
        load_volume(nib.Nifti1Image(colour, np.eye(4)))


# --- make_image


def test_a_sheared_affine_has_no_qform(values):
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.7
    image = make_image(values, sheared, space_code=1)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(image.affine, sheared)
    image = make_image(values, AFFINE, unit="a.u.", space_code=1)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(image.get_qform(), AFFINE, atol=1e-5)
    assert intensity_unit(image) == "a.u."
    assert intensity_unit(make_image(values, AFFINE)) is None


# --- atomic_path


def test_atomic_path_replaces_only_on_success(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith("file.txt")
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "new"
    assert names(tmp_path) == ["file.txt"]


def test_atomic_path_replaces_folders(tmp_path):
    target = tmp_path / "model"
    for content in ("old", "new"):
        with atomic_path(target) as temporary:
            (temporary / "unet").mkdir(parents=True)
            (temporary / "unet" / content).write_text(content)
    assert names(target / "unet") == ["new"]
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.mkdir()
        raise RuntimeError
    assert names(target / "unet") == ["new"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_honour_the_umask(tmp_path, umask, mode):
    previous = os.umask(umask)
    try:
        with atomic_path(tmp_path / "file") as temporary:
            temporary.write_text("text")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_killed_writer_leaves_the_previous_file(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    code = (
        "import os, signal, sys\nfrom voxdiff.volume_files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(target)]).returncode == -signal.SIGKILL
    assert target.read_text() == "old"


# --- save_volumes


def test_save_and_load(tmp_path, output):
    paths = save_volumes(output, tmp_path / "new" / "folder", prefix="brain")
    assert [path.name for path in paths] == ["brain-0000.nii.gz", "brain-0001.nii.gz"]
    assert names(tmp_path / "new" / "folder") == sorted(
        f"brain-000{i}{suffix}" for i in (0, 1) for suffix in (".nii.gz", ".json")
    )
    for path, volume, record in zip(paths, output.volumes, output.provenance, strict=True):
        image = nib.load(path)
        np.testing.assert_array_equal(image.dataobj, volume.dataobj)
        np.testing.assert_array_equal(image.affine, volume.affine)
        assert intensity_unit(image) == "HU"
        assert image.get_data_dtype() == np.float32
        assert json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text()) == record


def test_saving_twice_gives_the_same_bytes(tmp_path, output):
    first = save_volumes(output, tmp_path)[0].read_bytes()
    assert save_volumes(output, tmp_path)[0].read_bytes() == first


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("culprit", ["nib.save", "Path.write_text", "Image.save", "os.replace", "os.fsync"])
def test_a_full_disk_leaves_the_previous_files(tmp_path, output, monkeypatch, culprit):
    save_volumes(output, tmp_path, png=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    output.volumes = [make_image(np.zeros((3, 3, 3), np.float32), np.eye(4))] * 2
    output.provenance = [{"seed": 99}] * 2
    owner = {"nib": nib, "Path": type(tmp_path), "Image": Image.Image, "os": os}[culprit.split(".")[0]]
    monkeypatch.setattr(owner, culprit.split(".")[1], full_disk)
    with pytest.raises(OSError, match=r"Could not write '.*', which is as it was before .No space left.*; make room"):
        save_volumes(output, tmp_path, png=True)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_that_outgrows_its_limit_leaves_the_previous_one(tmp_path, output):
    """The kernel, not a mock, stops the write."""
    save_volumes(output, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    big = np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32)
    output.volumes = [make_image(big, np.eye(4))] * 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"Could not write '.*volume-0000.nii.gz'"):
            save_volumes(output, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"volumes": [np.zeros((2, 2, 2))] * 2}, "call the pipeline with output_type='nifti'"),
        ({"provenance": [{}]}, "2 volumes and 1 records; give one record a volume"),
        ({"provenance": [{}, {"dtype": np.float32}]}, "record of volume 1 is not plain JSON"),
        ({"provenance": [{"seconds": float("nan")}, {}]}, "record of volume 0 is not plain JSON"),
    ],
)
def test_an_output_that_cannot_be_saved_writes_nothing(tmp_path, output, change, message):
    with pytest.raises(ValueError, match=message):
        save_volumes(SimpleNamespace(**{**vars(output), **change}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prefix", ["", "../volume", "a/b"])
def test_a_prefix_is_the_beginning_of_a_name(tmp_path, output, prefix):
    with pytest.raises(ValueError, match="give the beginning of a file name"):
        save_volumes(output, tmp_path, prefix=prefix)


# --- pictures


def bright_side(picture, marked):
    """Pixel centre of the bright voxel, as fractions of the picture's height and of one panel's width."""
    rows, columns = np.nonzero(marked > 200)
    return rows.mean() / picture.shape[0], columns.mean() / picture.shape[1]


@pytest.mark.parametrize("code", ["RAS", "LPS", "SPR", "ILA"])
def test_picture_is_radiological_in_any_orientation(tmp_path, code):
    ras = np.zeros((20, 20, 20), np.float32)
    ras[15, 15, 15] = 0  # keeps the block below the only bright thing
    ras[12:18, 8:12, 8:12] = 100  # to the patient's right of the middle
    ras[8:12, 12:18, 8:12] = 100  # anterior
    ras[8:12, 8:12, 12:18] = 100  # superior
    image = nib.Nifti1Image(ras, np.eye(4))
    target = nib.orientations.axcodes2ornt(code)
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), target))
    three_plane_png(image, tmp_path / "picture.png")
    picture = np.asarray(Image.open(tmp_path / "picture.png")).astype(float)
    assert picture.shape == (256, 768)
    axial, coronal, sagittal = (picture[:, i * 256 : (i + 1) * 256] for i in range(3))
    up, down, left, right = (80, 128), (176, 128), (128, 80), (128, 176)
    for panel, bright, dark in (
        (axial, (left, up), (right, down)),
        (coronal, (left, up), (right, down)),
        (sagittal, (left, up), (right, down)),
    ):
        assert all(panel[place] > 200 for place in bright)
        assert all(panel[place] < 50 for place in dark)


def test_each_plane_shows_its_own_axes(tmp_path):
    values = np.zeros((20, 20, 20), np.float32)
    values[:, :, 10] = 50
    values[:, 10, :] = 100
    values[10, :, :] += 100
    three_plane_png(nib.Nifti1Image(values, np.eye(4)), tmp_path / "p.png", window=(0, 200))
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    corner = [int(picture[40, i * 256 + 40]) for i in range(3)]
    assert corner == [pytest.approx(64, abs=2), pytest.approx(128, abs=2), pytest.approx(128, abs=2)]
    assert picture[128 - 6, 256 * 2 + 40] > 140


def test_picture_is_physically_proportional(tmp_path):
    image = nib.Nifti1Image(
        np.random.default_rng(0).normal(size=(40, 20, 10)).astype(np.float32), np.diag([1.0, 4, 2, 1])
    )
    three_plane_png(image, tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").size == (128 + 128 + 256, 256)
    picture = np.asarray(Image.open(tmp_path / "picture.png"))
    coronal = picture[:, 128:256]
    lit = np.nonzero(coronal[:, 40:].std(axis=1) > 5)[0]
    assert lit[-1] - lit[0] + 1 == pytest.approx(64, abs=2)


def test_picture_windows(tmp_path):
    values = np.full((8, 8, 8), 40.0, np.float32)
    values[0, 0, 0] = -1000

    def middle(unit, **options):
        three_plane_png(make_image(values, np.eye(4), unit=unit), tmp_path / "picture.png", **options)
        return int(np.asarray(Image.open(tmp_path / "picture.png"))[100, 100])

    assert middle("HU") == 128
    assert middle("label") == 255
    assert middle("HU", window=(0, 80)) == 128
    assert middle(None, window=(0, 160)) == 64


def test_picture_has_a_row_for_each_channel(tmp_path):
    values = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
    three_plane_png(nib.Nifti1Image(values, np.eye(4)), tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").size == (768, 768)
