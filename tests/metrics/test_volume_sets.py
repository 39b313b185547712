import nibabel as nib
import numpy as np
import pytest
import torch

from voxdiff.metrics.volume_sets import VolumeSet
from voxdiff.metrics.volume_sources import find_volumes
from voxdiff.volume_files import make_image


def write(folder, values, *, name="a", unit="a.u.", spacing=2.0, axes=None):
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([spacing] * 3 + [1.0]) if axes is None else axes
    image = make_image(np.asarray(values, dtype=np.float32), affine, unit=unit)
    nib.save(image, folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


def volume(seed=0, shape=(8, 6, 4), scale=1.0):
    return np.random.default_rng(seed).random(shape) * scale


def test_prepares_values_in_unit_range_as_they_are(tmp_path):
    values = volume()
    write(tmp_path, values)
    found = VolumeSet.open(tmp_path)
    assert len(found) == 1 and found.names == ["a"] and found[0].shape == (1, 8, 6, 4)
    assert torch.allclose(found[0][0], torch.from_numpy(values).float(), atol=1e-6)
    assert found.spacing_mm == (2.0, 2.0, 2.0)


def test_hu_goes_through_the_window(tmp_path):
    values = np.full((4, 4, 4), -1000.0)
    values[0, 0, 0], values[1, 0, 0] = 0.0, 3000.0
    write(tmp_path, values, unit="HU")
    found = VolumeSet.open(tmp_path)
    assert found[0][0, 0, 0, 0] == 0.5 and found[0][0, 1, 0, 0] == 1 and found[0][0, 2, 0, 0] == 0


def test_other_values_are_scaled_by_percentiles(tmp_path):
    write(tmp_path, volume(scale=700))
    found = VolumeSet.open(tmp_path)
    assert found.processor.intensity == "percentile" and found[0].min() == 0 and found[0].max() == 1


def test_orientation_is_brought_to_ras(tmp_path):
    values = np.zeros((6, 6, 6))
    values[0, 3, 3] = 1.0
    write(tmp_path, values, axes=np.diag([-2.0, 2.0, 2.0, 1.0]))
    assert VolumeSet.open(tmp_path)[0][0, 5, 3, 3] == 1


def test_one_processor_serves_both_sets(tmp_path):
    write(tmp_path / "real", volume(scale=100))
    write(tmp_path / "synthetic", volume(1))
    real = VolumeSet.open(tmp_path / "real")
    assert VolumeSet.open(tmp_path / "synthetic", processor=real.processor).processor == real.processor


def test_arrays_are_a_set_too():
    arrays = [volume(seed) for seed in range(3)]
    found = VolumeSet.open(arrays)
    assert len(found) == 3 and len(found[1:]) == 2
    assert torch.allclose(found[1:][0][0], torch.from_numpy(arrays[1]).float(), atol=1e-6)


def test_cache_keeps_what_was_read_and_notices_a_change(tmp_path):
    path = write(tmp_path / "in", volume(0))
    found = VolumeSet.open(tmp_path / "in", cache_dir=tmp_path / "cache")
    found.prepare()
    before, state = found.content_digest, found.fingerprint
    (kept,) = (tmp_path / "cache").iterdir()
    np.save(kept, np.full((1, 8, 6, 4), 0.25, np.float32))
    assert VolumeSet.open(tmp_path / "in", cache_dir=tmp_path / "cache")[0].unique() == 0.25
    write(tmp_path / "in", volume(7))
    again = VolumeSet.open(tmp_path / "in", cache_dir=tmp_path / "cache")
    assert again.fingerprint != state and again.content_digest != before
    assert path.exists()


def test_digest_is_of_the_content(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, volume(3), name=name)
    write(tmp_path / "c", volume(4))
    digests = [VolumeSet.open(tmp_path / name).content_digest for name in ("a", "b", "c")]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"values": volume(1, (8, 6, 5))}, "different grids (1 of 8 x 6 x 4 voxels of 2 x 2 x 2 mm"),
        ({"spacing": 3.0}, "different grids"),
        ({"unit": "HU"}, "mixes volumes in HU and a.u."),
        ({"unit": "label"}, "mixes volumes in a.u. and label"),
    ],
)
def test_mixed_sets_are_refused_by_their_headers(tmp_path, second, words):
    write(tmp_path, volume())
    write(tmp_path, **{"values": volume(1), "name": "b", **second})
    with pytest.raises(ValueError, match=r"different grids|mixes") as error:
        VolumeSet.open(tmp_path)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_size_brings_different_grids_together(tmp_path):
    write(tmp_path, volume())
    write(tmp_path, volume(1, (6, 6, 6)), name="b")
    found = VolumeSet.open(tmp_path, size=(8, 8, 8))
    found.prepare()
    assert found[0].shape == found[1].shape == (1, 8, 8, 8)


def test_hu_against_another_unit_is_refused(tmp_path):
    write(tmp_path / "real", volume(scale=900) - 500, unit="HU")
    write(tmp_path / "synthetic", volume(1))
    with pytest.raises(ValueError, match=r"in a\.u\. and they are to be measured in HU"):
        VolumeSet.open(tmp_path / "synthetic", processor=VolumeSet.open(tmp_path / "real").processor)


def test_what_looks_like_hu_must_be_named(tmp_path):
    write(tmp_path, volume(scale=900) - 500, unit=None)
    with pytest.raises(ValueError, match="say --unit HU"):
        VolumeSet.open(tmp_path)
    assert VolumeSet.open(tmp_path, unit="HU").processor.unit == "HU"


def test_every_broken_file_is_named_at_once(tmp_path):
    for place in range(5):
        values = volume(place)
        values[0, 0, 0] = np.nan if place in (1, 3) else 0.5
        write(tmp_path, values, name=f"case-{place}")
    with pytest.raises(ValueError, match="NaN"):
        VolumeSet.open(tmp_path)
    found = VolumeSet.open(tmp_path, processor=VolumeSet.open([volume()]).processor)
    with pytest.raises(ValueError, match=r"2 of the 5 volumes.*case-1.*case-3"):
        found.prepare()


def test_missing_empty_and_too_few(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_volumes(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no NIfTI volume"):
        find_volumes(tmp_path)
    write(tmp_path, volume())
    with pytest.raises(FileNotFoundError, match="t1"):
        VolumeSet.open(tmp_path, pattern="*_t1.nii.gz")
    with pytest.raises(ValueError, match="holds 1 volumes and 4 are asked for"):
        VolumeSet.open(tmp_path, limit=4)
    (tmp_path / "b.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read"):
        VolumeSet.open(tmp_path)


def test_files_of_one_stem_keep_their_own_digests(tmp_path):
    write(tmp_path / "in", volume(1))
    nib.save(nib.load(write(tmp_path / "other", volume(2))), tmp_path / "in" / "a.nii")
    found = VolumeSet.open(tmp_path / "in")
    assert found.names == ["a", "a"] and found.digest(0) != found.digest(1)


def test_stored_axes_may_differ_where_the_grid_does_not(tmp_path):
    write(tmp_path, volume(0, (8, 6, 4)))
    turned = np.array([[0, 2.0, 0, 0], [2.0, 0, 0, 0], [0, 0, -2.0, 0], [0, 0, 0, 1]])
    write(tmp_path, volume(0, (8, 6, 4)).transpose(1, 0, 2)[:, :, ::-1], name="b", axes=turned)
    found = VolumeSet.open(tmp_path)
    found.prepare()
    assert found.sources[1].header.shape == (8, 6, 4)
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_a_damaged_cache_says_so(tmp_path):
    write(tmp_path / "in", volume(0))
    VolumeSet.open(tmp_path / "in", cache_dir=tmp_path / "cache").prepare()
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(ValueError, match="delete the file"):
        VolumeSet.open(tmp_path / "in", cache_dir=tmp_path / "cache")[0]
