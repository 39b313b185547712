import nibabel as nib
import numpy as np
import pytest
import torch

from voxdiff import VolumeProcessor
from voxdiff.pipelines.informed_slice_requests import (
    crop_in_plane,
    describe_conditions,
    find_start,
    pad_in_plane,
    read_informed_slices,
    read_masks,
    slice_at,
)
from voxdiff.pipelines.mask_values import MaskEncoder

PROCESSOR = VolumeProcessor(intensity="window", low=0, high=100, unit="ms", value_range=(0, 1))
ENCODER = MaskEncoder({-1: -1.0, 0: 0.0, 7: 1.0})
SHAPE = (5, 4, 3)


def labels(shape=SHAPE):
    return np.random.default_rng(0).choice([-1, 0, 7], shape).astype(np.int16)


def volume(shape=SHAPE):
    return np.random.default_rng(1).uniform(0, 100, shape).astype(np.float32)


def image(values, code="RAS"):
    stored = nib.Nifti1Image(values, np.diag([2.0, 3.0, 4.0, 1.0]))
    turn = nib.orientations.ornt_transform(nib.io_orientation(stored.affine), nib.orientations.axcodes2ornt(code))
    return stored.as_reoriented(turn)


def read_slice(given, mask, processor=PROCESSOR, start=1, rule="inclusive"):
    (one,) = read_informed_slices(given, read_masks(mask, processor, ENCODER), processor, start=start, rule=rule)
    return one


@pytest.mark.parametrize("code", ["RAS", "LPS", "SRA", "IPL"])
def test_labels_keep_intact_in_every_orientation(code, tmp_path):
    path = tmp_path / "mask.nii.gz"
    nib.save(image(labels(), code), path)
    for given in (path, str(path), image(labels(), code)):
        (request,) = read_masks(given, PROCESSOR, ENCODER)
        assert torch.equal(request.places, ENCODER.index(labels()))
        assert request.geometry.orientation == code
    assert (request.sides, request.depth, request.padded_sides(4)) == ((5, 4), 3, (8, 4))


def test_masks_are_resampled_only_if_the_processor_says_so():
    finer = VolumeProcessor(intensity="window", low=0, high=1, spacing=(1, 1, 1))
    (request,) = read_masks(image(labels()), finer, ENCODER)
    expected = np.kron(labels(), np.ones((2, 3, 4), np.int16))
    assert torch.equal(request.places, ENCODER.index(expected))


@pytest.mark.parametrize("code", ["RAS", "LPS", "ALS"])
def test_a_plane_has_the_orientation_of_its_mask(code):
    given = np.asarray(image(volume(), code).dataobj)[..., 1]
    values = read_slice(given, image(labels(), code)).values
    torch.testing.assert_close(values[0, 0], torch.from_numpy(volume()[..., 1] / 100))


def test_a_plane_of_a_mask_with_another_last_axis_is_refused():
    with pytest.raises(ValueError, match="the mask's last axis is not the axial one of the model; give a volume"):
        read_slice(np.zeros((3, 5)), image(labels(), "SRA"))


def test_slices_of_volumes_are_taken_at_the_same_relative_position(tmp_path):
    other = volume((5, 4, 7))
    for given in (other, torch.from_numpy(other), image(other), image(other, "LPI")):
        for start, index in ((0, 0), (1, 3), (2, 6)):
            one = read_slice(given, image(labels()), start=start)
            assert one.index == index
            torch.testing.assert_close(one.values[0, 0], torch.from_numpy(other[..., index] / 100))
    assert read_slice((other, 5), image(labels())).index == 5
    path = tmp_path / "other.nii"
    nib.save(image(other), path)
    assert read_slice(path, image(labels())).describe() == {"informed_slice": str(path), "informed_slice_index": 3}


def test_an_image_of_a_single_slice_is_a_plane():
    one = read_slice(image(volume((5, 4, 1))), image(labels()))
    assert one.index is None
    torch.testing.assert_close(one.values[0, 0], torch.from_numpy(volume((5, 4, 1))[..., 0] / 100))


@pytest.mark.parametrize("code", ["RAS", "LPS", "ALI", "SRA"])
def test_an_image_of_a_single_slice_has_an_orientation_of_its_own(code, tmp_path):
    nib.save(image(volume((5, 4, 1)), code), tmp_path / "slice.nii.gz")
    one = read_slice(tmp_path / "slice.nii.gz", image(labels(), "LAS"))
    assert one.source == str(tmp_path / "slice.nii.gz")
    torch.testing.assert_close(one.values[0, 0], torch.from_numpy(volume((5, 4, 1))[..., 0] / 100))


def test_an_oblique_single_slice_is_refused():
    given = image(volume((5, 4, 1)))
    given.affine[1, 2] = 1
    with pytest.raises(ValueError, match="The informed slice is oblique to the model's axial slices; give a volume"):
        read_slice(given, image(labels()))


@pytest.mark.parametrize("thickness", [0.5, 4, 9, 12])
def test_a_single_slice_is_not_mixed_with_background(thickness):
    """Also where the model's slices are several times as thick as the mask's, here 4 mm."""
    processor = VolumeProcessor(intensity="window", low=0, high=100, unit="ms", spacing=(2, 3, thickness))
    thin = np.full((5, 4, 1), 50, np.float32)
    for given in (np.full((5, 4), 50.0), image(thin), image(thin, "SRA"), image(thin, "AIL")):
        assert read_slice(given, image(labels()), processor).values.eq(0).all()


def test_a_slice_without_air_is_in_hu_if_the_caller_says_so():
    processor = VolumeProcessor(intensity="window", low=-100, high=100)
    masks, given = read_masks(image(labels()), processor, ENCODER), np.full((5, 4), 50.0)
    with pytest.raises(ValueError, match="does not look like CT in HU"):
        read_informed_slices(given, masks, processor, start=1, rule="inclusive")
    for known in ({"unit": "HU"}, {"background": -100.0}):
        (one,) = read_informed_slices(given, masks, processor, start=1, rule="inclusive", **known)
        assert one.values.eq(0.5).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("look.PNG", "'look.PNG' is a picture, which does not say where left is; give a NIfTI file, or an array"),
        ((volume(), 1.0), r"informed_slice is a tuple of ndarray, float; give a 2D slice"),
        ((volume(), volume()), "is a tuple of ndarray, ndarray"),
        (np.full((5, 4), np.nan), "The informed slice holds 20 NaN"),
    ],
)
def test_other_informed_slices_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read_slice(given, image(labels()))


@pytest.mark.parametrize("mask", [None, 3])
def test_what_is_no_mask_is_refused(mask):
    with pytest.raises(ValueError, match=r"mask is a .*; give a path, a NIfTI image, an array or a tensor of labels"):
        read_masks(mask, PROCESSOR, ENCODER)


def test_the_start():
    assert [find_start(given, 60, "inclusive") for given in (None, 0, 59, 0.0, 0.5, 1.0)] == [30, 0, 59, 0, 30, 59]
    assert [find_start(given, 60, "official") for given in (0.5, 0.99, 1.0)] == [30, 59, 59]
    assert [slice_at(number / 100, 100, "official") for number in range(100)] == list(range(100))


def test_padding_is_undone():
    padded = pad_in_plane(torch.ones(1, 5, 4, 3), (8, 8), -1.0)
    assert padded.shape == (1, 8, 8, 3) and padded.sum() == 60 - (64 - 20) * 3
    assert crop_in_plane(padded, (5, 4)).eq(1).all() and crop_in_plane(padded, (5, 4)).shape == (1, 5, 4, 3)


def test_records_without_given_slices():
    masks = read_masks([image(labels()), labels()], PROCESSOR, ENCODER)
    (record, _) = describe_conditions(masks, None, otherwise=None, start=3, eta=0.0)
    assert record["eta"] == 0.0 and record["start"] is record["informed_slice"] is record["propagation"] is None
    generated = describe_conditions(masks, None, otherwise="generated", start=3)[1]
    assert generated == {
        "mask": "ndarray",
        "informed_slice": "generated",
        "informed_slice_index": None,
        "start": 3,
    }


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR"])
@pytest.mark.parametrize(("begin", "lost"), [(0, 100), (7, 17), (8, 0)])
def test_labels_outside_of_the_models_field_of_view_are_refused(begin, lost, orientation):
    processor = VolumeProcessor(size=(8, 8, 8), spacing=(2.0, 2.0, 2.0))  # voxels 8 to 23 of 1 mm
    labels = np.zeros((32, 32, 32), np.uint8)
    labels[(slice(begin, begin + 6),) + (slice(9, 15),) * 2] = 1
    canonical = nib.Nifti1Image(labels, np.eye(4))
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(canonical.affine), nib.orientations.axcodes2ornt(orientation)
    )
    mask = canonical.as_reoriented(turn)
    if not lost:
        assert int(read_masks(mask, processor, MaskEncoder({0: -1.0, 1: 1.0}))[0].places.sum()) > 0
        return
    with pytest.raises(
        ValueError, match=rf"{lost} % of the labelled voxels of the mask lie outside .* 16 x 16 x 16 mm"
    ):
        read_masks(mask, processor, MaskEncoder({0: -1.0, 1: 1.0}))
