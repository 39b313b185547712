"""Sets that no one should compare."""

import nibabel as nib
import numpy as np
import pytest

from voxdiff.metrics import set_checks
from voxdiff.metrics.volume_sets import VolumeSet
from voxdiff.volume_files import make_image

TURN = np.deg2rad(20)
OBLIQUE = 2 * np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]])


def volumes(folder, values, *, like=None, unit="a.u.", matrix=None, number=2):
    """A set of random volumes, brought to [0, 1] as `like` is."""
    folder.mkdir()
    for place in range(number):
        noise = np.random.default_rng(place).random((12, 12, 12))
        affine = np.eye(4)
        affine[:3, :3] = 2 * np.eye(3) if matrix is None else matrix
        nib.save(make_image(values(noise).astype(np.float32), affine, unit=unit), folder / f"{place}.nii.gz")
    return VolumeSet.open(folder, processor=like and like.processor, unit=unit)


def ct(noise):
    return 1500 * noise - 1000


def test_headers_and_prepared_grids(tmp_path):
    real = volumes(tmp_path / "real", lambda noise: noise)
    fine = volumes(tmp_path / "fine", lambda noise: noise, like=real, matrix=np.eye(3))
    with pytest.raises(ValueError, match=r"of 1 x 1 x 1 mm and those .* of 2 x 2 x 2 mm; correct the header"):
        set_checks.require_same_grid(fine, real)
    oblique = volumes(tmp_path / "oblique", lambda noise: noise, like=real, matrix=OBLIQUE)
    set_checks.require_same_grid(oblique, real)
    with pytest.raises(ValueError, match=r"have 16 x 16 x 12 .* 12 x 12 x 12; .*--size"):
        set_checks.require_same_prepared_grid(oblique, real)
    set_checks.require_same_prepared_grid(real, real)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda noise: noise, "from .* only; name the right unit"),
        (lambda noise: 1500 * noise, "begin at .*give both sets in HU"),
    ],
)
def test_hu_of_another_scale(tmp_path, change, words):
    real = volumes(tmp_path / "real", ct, unit="HU")
    set_checks.require_same_scale([real], real)
    other = volumes(tmp_path / "other", change, like=real, unit="HU")
    with pytest.raises(ValueError, match=words):
        set_checks.require_same_scale([other], real)


def test_values_of_another_scale(tmp_path):
    real = volumes(tmp_path / "real", lambda noise: noise)
    bright = volumes(tmp_path / "bright", lambda noise: 255 * noise, like=real)
    with pytest.raises(ValueError, match="bring both sets to one scale"):
        set_checks.require_same_scale([bright], real)


def test_a_second_offset_is_a_warning(tmp_path):
    real = volumes(tmp_path / "real", ct, unit="HU")
    assert set_checks.clipping_warnings(real, real) == []
    shifted = volumes(tmp_path / "shifted", lambda noise: ct(noise) - 1024, like=real, unit="HU")
    (warning,) = set_checks.clipping_warnings(shifted, real)
    assert "% of the voxels in shifted and 1 % of those in real" in warning


def test_heldout_volumes_in_the_training_set(tmp_path):
    train = volumes(tmp_path / "train", lambda noise: noise, number=3)
    heldout = volumes(tmp_path / "heldout", lambda noise: noise[::-1], number=2)
    set_checks.require_disjoint(heldout, train)
    mixed = VolumeSet(heldout.folder, [*heldout.sources, train.sources[2]], train.processor)
    with pytest.raises(ValueError, match=r"1 of the 3 held-out volumes .*\(2 is 2\)"):
        set_checks.require_disjoint(mixed, train)
