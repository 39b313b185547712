import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from slice_pipelines import make_slice_processor

from voxdiff import VolumeProcessor
from voxdiff.pipelines.slice_conditions import condition_on_nothing
from voxdiff.pipelines.slice_requests import read_request

TILT = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])


def make_scan(shape=(6, 7, 5), spacing=(2, 2, 6), orientation="RAS", tilted=True, seed=0):
    """A scan of 0 to 1000 scanner units whose axes are those of an axis code, tilted by 16 degrees."""
    affine = np.eye(4)
    affine[:3, :3] = (TILT if tilted else np.eye(3)) @ np.diag(spacing)
    affine[:3, 3] = 3, -4, 5
    values = (np.random.default_rng(seed).random(shape) * 1000).astype(np.float32)
    image = nib.Nifti1Image(values, affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(orientation)
    )
    return image.as_reoriented(turn)


def file_axis(image, axis):
    """Which axis of the file runs along x, y or z."""
    return [int(world) for world in nib.orientations.io_orientation(image.affine)[:, 0]].index(axis)


def matched_slices(image, result, axis):
    """For each slice of a file its index in the result, by world coordinates; every voxel of it must coincide."""
    along = file_axis(image, axis)
    for number in range(image.shape[along]):
        index = np.array([0.0, 0, 0, 1])
        index[along] = number
        place = np.linalg.inv(result.affine) @ image.affine @ index
        assert abs(place - np.round(place)).max() < 1e-4
        assert np.delete(np.round(place[:3]), along).tolist() == [0, 0]
        yield along, number, round(place[along])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAR", "PIL"])
def test_known_slices_come_back_bit_for_bit_at_their_place_in_the_world(orientation, axis):
    image = make_scan(orientation=orientation)
    processor = make_slice_processor(intensity="percentile", low=5, high=95)
    request = read_request(processor, axis, volume=image, factor=3, extend=(1, 2))
    (result,) = request.finish(torch.zeros(1, 1, *request.clean.shape[2:]), "nifti")
    assert nib.aff2axcodes(result.affine) == tuple(orientation)
    along = file_axis(image, axis)
    assert result.header.get_zooms()[along] == pytest.approx(image.header.get_zooms()[along] / 3, rel=1e-5)
    assert result.shape[along] == 3 * (image.shape[along] - 1) + 4
    found = 0
    for _, number, place in matched_slices(image, result, axis):
        np.testing.assert_array_equal(
            result.get_fdata(dtype=np.float32).take(place, along), image.get_fdata(dtype=np.float32).take(number, along)
        )
        found += 1
    assert found == image.shape[along] == len(request.known)


def test_slices_between_are_in_the_unit_of_the_known_ones():
    image = make_scan(tilted=False)
    request = read_request(make_slice_processor(), 2, volume=image, factor=2)
    (top,) = request.finish(torch.ones(1, 1, *request.clean.shape[2:]), "nifti")
    values = image.get_fdata(dtype=np.float32)
    assert top.get_fdata()[3, 3, 1] == pytest.approx(values.max(), rel=1e-6)
    bottom = request.finish(-torch.ones(1, 1, *request.clean.shape[2:]), "pt")
    assert bottom[0, 0, 3, 3, 1].item() == pytest.approx(values.min(), rel=1e-6)


def test_the_network_sees_scaled_slices_in_place_and_background_between():
    image = make_scan(tilted=False)
    request = read_request(make_slice_processor(size=None, spacing=None), 2, volume=image, factor=2)
    values = image.get_fdata(dtype=np.float32)
    scaled = (values - values.min()) / (values.max() - values.min()) * 2 - 1
    np.testing.assert_allclose(request.clean[0, 0, ..., ::2], scaled, atol=1e-6)
    assert (request.clean[..., 1::2] == -1).all()
    assert request.known == (0, 2, 4, 6, 8)


@pytest.mark.parametrize("output_type", ["pt", "np"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tensors_hold_the_known_slices_too(axis, output_type):
    values = np.random.default_rng(1).random((8, 8, 8)).astype(np.float32) * 900
    request = read_request(make_slice_processor(size=(8, 8, 8)), axis, volume=values, corrupted=[2, 5])
    result = np.asarray(request.finish(torch.zeros(2, 1, 8, 8, 8), output_type))
    assert result.shape == (2, 1, 8, 8, 8)
    for sample in result:
        np.testing.assert_array_equal(sample[0].take(request.known, axis), values.take(request.known, axis))
        assert len(np.unique(sample[0].take([2, 5], axis))) == 1


def test_slices_are_resampled_in_plane_only():
    """Each slice of a scan has its own constant: through the model's grid it must stay constant."""
    values = np.broadcast_to(np.arange(1, 6, dtype=np.float32), (20, 18, 5)).copy()
    scan = nib.Nifti1Image(values, make_scan(spacing=(0.9, 1.1, 6)).affine)
    request = read_request(make_slice_processor(), 2, volume=scan, factor=2)
    assert request.clean.shape == (1, 1, 8, 8, 9) and request.sides == (8, 8)
    seen = request.clean[0, 0, 1:-1, 1:-1, ::2]
    np.testing.assert_allclose(seen, np.broadcast_to(np.linspace(-1, 1, 5), seen.shape), atol=1e-5)


def test_hu_beyond_the_window_stay_in_known_slices():
    processor = VolumeProcessor(intensity="window", low=-1000, high=1000, size=(8, 8, 8))
    values = np.random.default_rng(0).uniform(-1000, 3000, (8, 8, 8)).astype(np.float32)
    request = read_request(processor, 2, volume=values, corrupted=[1])
    (result,) = request.finish(torch.zeros(1, 1, 8, 8, 8), "nifti")
    np.testing.assert_array_equal(np.delete(result.get_fdata(dtype=np.float32), 1, 2), np.delete(values, 1, 2))
    assert result.get_fdata()[0, 0, 1] == 0 and b"HU" in result.header["descrip"].item()


def test_the_caller_may_say_what_the_range_stands_for():
    values = np.full((8, 8, 4), 50.0)
    request = read_request(
        make_slice_processor(), 2, volume=values, factor=2, intensity_range=(0, 100), background=25.0
    )
    assert request.clean[..., 0].unique().tolist() == [0] and request.outside == -0.5
    assert request.clean[..., 1].unique().tolist() == [-0.5]
    result = request.finish(torch.ones(1, 1, 8, 8, 7), "pt")
    assert result[0, 0, 0, 0].tolist() == [50, 100, 50, 100, 50, 100, 50]


ARBITRARY = {"intensity": "window", "low": 0, "high": 1, "unit": "a.u."}


@pytest.mark.parametrize("scale", [(2, -1), (-0.9, 0), (0.8, 1.1)])
def test_a_scan_beyond_an_arbitrary_window_is_refused(scale):
    values = np.random.default_rng(0).random((8, 12, 5)).astype(np.float32)
    with pytest.raises(
        ValueError, match=r"The volume has values from \S+ to \S+, but this model works from 0 to 1; pass int"
    ):
        read_request(make_slice_processor(**ARBITRARY), 2, volume=scale[0] * values + scale[1], corrupted=[1])


def test_a_dim_scan_is_warned_of(caplog):
    values = np.random.default_rng(0).random((8, 12, 5)).astype(np.float32)
    for dim, said in ((1.0, False), (0.0, False), (0.01, True)):
        read_request(make_slice_processor(**ARBITRARY), 2, volume=dim * values, corrupted=[1])
        assert ("works from 0 to 1; if they are on another scale, pass intensity_range" in caplog.text) == said


def test_a_scan_on_another_scale_than_an_arbitrary_window_is_refused_or_scaled():
    processor = VolumeProcessor(intensity="window", low=0, high=1, unit="a.u.", size=(8, 8, 7))
    values = np.linspace(0, 900, 8 * 8 * 4).reshape(8, 8, 4)
    with pytest.raises(
        ValueError, match="has values from 0 to 900, but this model works from 0 to 1; pass intensity_ra"
    ):
        read_request(processor, 2, volume=values, factor=2)
    request = read_request(processor, 2, volume=values, factor=2, intensity_range=(0, 900))
    np.testing.assert_allclose(request.clean[0, 0, ..., ::2], values / 450 - 1, atol=1e-6)
    assert request.finish(torch.ones(1, 1, 8, 8, 7), "pt")[0, 0, 0, 0, 1] == 900


def test_nothing_known_is_background_of_the_models_grid():
    request = condition_on_nothing(make_slice_processor(), (8, 10, 12), 1)
    assert request.clean.shape == (1, 1, 8, 12, 10) and (request.clean == -1).all()
    assert (request.depth, request.known, request.describe()["source"]) == (10, (), None)
    assert request.finish(torch.zeros(1, 1, 8, 12, 10), "latent").shape == (1, 1, 8, 10, 12)


@pytest.mark.parametrize("seed", range(12))
def test_a_scan_halfway_between_two_axes_keeps_its_own(seed):
    random, affine = np.random.default_rng(seed), np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [45, 0, 45], degrees=True).as_matrix() * random.uniform(0.5, 5, 3)
    image = nib.Nifti1Image(random.random((6, 8, 5)).astype(np.float32), affine)
    processor = make_slice_processor(spacing=None, size=None, orientation=["RAS", "LPS", "SAR"][seed % 3])
    request = read_request(processor, 2, volume=image, corrupted=[1])
    (result,) = request.finish(torch.zeros(1, 1, *request.clean.shape[2:]), "nifti")
    np.testing.assert_allclose(result.affine, affine, atol=1e-5)
