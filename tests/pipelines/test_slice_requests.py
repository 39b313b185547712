import nibabel as nib
import numpy as np
import pytest
import torch
from slice_pipelines import make_slice_processor

from voxdiff import VolumeProcessor
from voxdiff.pipelines.slice_requests import read_request
from voxdiff.volume_files import make_image

PLANE = np.linspace(0, 1, 64).reshape(8, 8)


def make_volume(shape=(8, 8, 6), seed=0):
    return np.random.default_rng(seed).random(shape)


def read(axis=2, processor=None, **arguments):
    return read_request(processor or make_slice_processor(), axis, **arguments)


@pytest.mark.parametrize(
    ("arguments", "known", "depth"),
    [
        ({"corrupted": np.array([1, 4])}, (0, 2, 3, 5), 6),
        ({"known_indices": [4, 1]}, (1, 4), 6),
        ({"extend": (2, 3)}, (2, 3, 4, 5, 6, 7), 11),
        ({"factor": 4}, (0, 4, 8, 12, 16, 20), 21),
        ({"factor": 2, "extend": (1, 1), "corrupted": [0]}, (3, 5, 7, 9, 11), 13),
    ],
)
def test_every_condition_names_its_known_slices(arguments, known, depth):
    request = read(volume=make_volume(), **arguments)
    assert (request.known, request.depth) == (known, depth)
    assert request.given.values.dtype == np.float32 and request.given.source == "ndarray"


def test_corrupted_slices_have_no_influence_even_on_the_scaling():
    values = make_volume()
    broken = values.copy()
    broken[..., 3] = 1e6
    whole, repaired = (read(volume=volume, corrupted=[3]) for volume in (values, broken))
    assert torch.equal(whole.clean, repaired.clean)


def test_voxels_that_are_not_used_may_be_nan(tmp_path):
    values = make_volume().astype(np.float32)
    broken = values.copy()
    broken[..., 3] = np.nan
    nib.save(nib.Nifti1Image(broken, np.diag([2, 2, 3, 1])), tmp_path / "broken.nii")
    for volume in (broken, torch.from_numpy(broken), tmp_path / "broken.nii"):
        assert torch.equal(read(volume=volume, corrupted=[3]).clean, read(volume=values, corrupted=[3]).clean)
        with pytest.raises(
            ValueError, match=r"The volume .*NaN or infinite voxels in the slices 3 .*, or name such slices in cor"
        ):
            read(volume=volume, corrupted=[2])


def test_thick_slices_along_another_axis_are_warned_of(caplog):
    image = make_image(make_volume((6, 8, 8)).astype(np.float32), np.diag([6.0, 1, 1, 1]))
    assert read(axis=0, volume=image, factor=3).depth == 16
    assert read(axis=2, volume=image, extend=(0, 1)).depth == 9 and not caplog.records
    read(axis=2, volume=image, slice_spacing=0.5)
    (record,) = caplog.records
    assert "refined along axis 2, where its slices are 1 mm apart, and stays as it is along axis 0" in record.message


def test_a_known_slice_whose_file_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Known slice 2: There is no file '.*missing.nii'; give the path"):
        read(known_slices={2: tmp_path / "missing.nii"})


def test_counts_may_be_arrays():
    assert read(volume=make_volume(), extend=np.array([1, 1])).depth == 8
    assert read(known_slices={0: PLANE}, size=np.array([8, 8, 3])).depth == 3
    for arguments in ({"extend": np.array(1), "volume": make_volume()}, {"size": np.array(8)}):
        with pytest.raises(ValueError, match=r"is array\(.\); give (two|three) whole numbers"):
            read(**arguments)


def test_bfloat16_is_read_as_it_is():
    volume, plane = torch.from_numpy(make_volume()).bfloat16(), torch.from_numpy(PLANE).bfloat16()
    assert torch.equal(read(volume=volume, corrupted=[0]).clean, read(volume=volume.float(), corrupted=[0]).clean)
    assert torch.equal(read(known_slices={1: plane}).clean, read(known_slices={1: plane.float()}).clean)


def test_slices_are_counted_in_the_models_orientation():
    values = make_volume()
    flipped = nib.Nifti1Image(values[..., ::-1].copy(), np.diag([2, 2, -3, 1]))
    one, other = read(volume=values, corrupted=[1]), read(volume=flipped, corrupted=[1])
    np.testing.assert_allclose(one.clean, other.clean, atol=1e-6)


def test_a_files_unit_and_path_are_kept(tmp_path):
    path = tmp_path / "scan.nii.gz"
    image = nib.Nifti1Image(make_volume().astype(np.float32), np.diag([2, 2, 6, 1]))
    image.header["descrip"] = b"voxdiff; unit=ms"
    nib.save(image, path)
    request = read(volume=path, slice_spacing=1.5)
    assert request.depth == 21 and request.describe()["source"] == str(path)
    assert request.processor.unit == "ms"
    assert request.positions.diff().unique().tolist() == [0.5]


def test_single_slices_may_be_arrays_tensors_and_images(tmp_path):
    image = nib.Nifti1Image(PLANE[..., None].astype(np.float32), np.diag([-2, 2, 3, 1]))
    nib.save(image, tmp_path / "slice.nii")
    slices = {7: PLANE, 2: torch.from_numpy(PLANE), 5: image, 4: tmp_path / "slice.nii"}
    request = read(known_slices=slices)
    assert request.known == (2, 4, 5, 7) and request.depth == 12
    assert torch.equal(request.clean[..., 2], request.clean[..., 7])
    assert torch.equal(request.clean[..., 4], request.clean[..., 2].flip(2))
    assert torch.equal(request.clean[..., 5], request.clean[..., 4])


def test_images_of_single_slices_name_the_unit_and_are_not_tilted():
    def tilted(degrees, unit=None):
        turn = np.diag([2.0, 2, 3, 1])
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn[1:3, 1:3] = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([2, 3])
        return make_image(PLANE[..., None].astype(np.float32), turn, unit=unit)

    assert read(known_slices={3: tilted(0.5, "ms"), 5: PLANE}).processor.unit == "ms"
    with pytest.raises(
        ValueError, match=r"Known slice 3 is tilted by 40\.0 degrees to the model's grid; give a 2D array"
    ):
        read(known_slices={3: tilted(40)})
    with pytest.raises(ValueError, match=r"The known slices are in a\.u\. and ms; give slices of one unit"):
        read(known_slices={3: tilted(0, "ms"), 5: tilted(0, "a.u.")})


@pytest.mark.parametrize(("axis", "shape"), [(0, (10, 12)), (1, (8, 12)), (2, (8, 10))])
def test_a_slice_spans_the_other_two_axes(axis, shape):
    request = read(axis, known_slices={3: np.random.default_rng(0).random(shape)}, size=(8, 10, 12))
    assert tuple(request.clean.shape[2:4]) == shape and request.depth == (8, 10, 12)[axis]
    with pytest.raises(ValueError, match=rf"across axis {axis} this grid has slices of \({shape[0]}, {shape[1]}\)"):
        read(axis, known_slices={3: np.zeros(shape[::-1])}, size=(8, 10, 12))


def test_the_result_lies_in_the_middle_of_the_models_grid_whatever_is_known():
    grid, plane = (8, 8, 6), np.random.default_rng(0).random((8, 8))
    requests = [
        read(size=grid),
        read(size=grid, known_slices={1: plane}),
        read(volume=make_volume(grid), corrupted=[0]),
    ]
    assert [request.positions.tolist() for request in requests] == [[3, 4, 5, 6, 7, 8]] * 3


def test_air_may_lie_below_what_is_shown():
    processor = VolumeProcessor(intensity="window", low=-1000, high=1000, size=(8, 8, 6))
    for background in (-1000, -2048):
        found = read(processor=processor, volume=make_volume(), corrupted=[0], unit="HU", background=background)
        assert found.outside == -1
    assert read(volume=make_volume(), corrupted=[0], background=-1024).outside == -1
    model = make_slice_processor(intensity="minmax", background=0.0)
    assert read(processor=model, volume=make_volume() - 5, corrupted=[0]).outside == 1


def test_a_ct_model_asks_for_hu():
    processor = VolumeProcessor(intensity="window", low=-1000, high=1000, size=(8, 8, 6))
    with pytest.raises(ValueError, match="does not look like CT in HU"):
        read(processor=processor, volume=make_volume(), corrupted=[0])
    assert read(processor=processor, volume=make_volume(), corrupted=[0], unit="HU").processor == processor
    with pytest.raises(ValueError, match="works in 'HU', which fixes it; leave it out"):
        read(processor=processor, volume=make_volume(), unit="HU", intensity_range=(0, 1))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"known_slices": {12: PLANE}}, "known_slices has the slice 12; give whole numbers from 0 to 11"),
        ({"known_slices": {-1: PLANE}}, "known_slices has the slice -1"),
        ({"known_slices": {}}, "known_slices is an empty dict; give a mapping of index -> slice"),
        ({"known_slices": [PLANE]}, "known_slices is a list; give a mapping of index -> slice"),
        (
            {"known_slices": {0: nib.Nifti1Image(PLANE[..., None], np.diag([1, 2, 3, 1]))}},
            "Known slice 0 has voxels of 1 x 2 mm in plane, but this model of 2 x 2 mm; resample it",
        ),
        (
            {"known_slices": {0: PLANE[:4]}},
            r"has the shape \(4, 8\), but across axis 2 this grid has slices of \(8, 8\)",
        ),
        ({"known_slices": {0: PLANE[None]}}, r"Known slice 0 is a ndarray of shape \(1, 8, 8\); give a 2D array"),
        ({"known_slices": {0: PLANE * np.nan}}, "Known slice 0 holds 64 NaN"),
        (
            {"known_slices": {2: nib.Nifti1Image(PLANE.astype(np.float32), np.eye(4))}},
            r"Known slice 2: The image has shape \(8, 8\); give a 3D volume",
        ),
        ({"known_slices": {0: np.zeros((8, 8))}}, "The set of known slices has no contrast"),
        ({"known_slices": {0: PLANE}, "volume": make_volume()}, "known_slices and a volume were given"),
        ({"known_slices": {0: PLANE}, "factor": 2}, "factor was given without a volume"),
        ({"volume": make_volume(), "size": (8, 8, 8)}, "size was given together with a volume"),
        ({"volume": make_volume(), "corrupted": [6]}, "corrupted has the slice 6; give whole numbers from 0 to 5"),
        ({"volume": make_volume(), "known_indices": [2, 2]}, "known_indices has the slice 2 twice"),
        ({"volume": make_volume(), "known_indices": [2], "corrupted": [3]}, "known_indices and corrupted were given"),
        ({"volume": make_volume(), "corrupted": range(6)}, "None of the volume's 6 slices is left to start from"),
        ({"volume": make_volume(), "corrupted": 3}, "corrupted is 3; give a sequence of slices"),
        ({"known_slices": {0: PLANE}, "first_position": np.nan}, "first_position is nan; give one finite number"),
        ({"volume": make_volume(), "extend": (True, 0)}, r"extend is \(True, 0\); give two whole numbers"),
        ({"volume": make_volume(), "extend": (-1, 0)}, r"extend is \(-1, 0\); give two whole numbers"),
        ({"volume": make_volume(), "extend": 3}, "extend is 3; give two whole numbers"),
        ({"volume": make_volume(), "slice_spacing": 1.0}, "an array has no spacing of its own; give factor"),
        ({"volume": [0.5]}, "The volume is a list; give a path, an image, an array or a tensor"),
        ({"volume": make_volume()[0]}, r"The volume has shape \(8, 6\); give a 3D volume"),
        ({"volume": make_volume(), "intensity_range": (3, 3)}, "The window is 3.0 to 3.0; give low and high"),
        ({"corrupted": [1]}, "corrupted was given without a volume"),
        ({"volume": make_volume(), "background": "0"}, "background is '0'; give one finite number"),
        (
            {"volume": make_volume(), "background": 1e9},
            r"background is 1e\+09, but of the volume the network sees 0\.\S+ to 0\.\S+; give the value outside",
        ),
        (
            {"volume": make_volume(), "factor": 1000},
            "The result would have 5001 slices; give a size, a spacing, a factor",
        ),
        (
            {"volume": make_volume(), "intensity_range": (7, 9)},
            r"intensity_range is 7 to 9, but the volume has values from",
        ),
        ({"volume": make_volume() * 4000, "intensity_range": (0, 1)}, "all outside or more than half above it"),
        ({"volume": make_volume() * 1e300}, r"The known slices reach \S+, beyond float32; scale them first"),
        ({"size": (8, 8, 100_000)}, "The result would have 100000 slices; give a size, a spacing"),
        (
            {"volume": make_image(PLANE[..., None], np.eye(4)), "slice_spacing": 1e-320},
            "slice_spacing is .* give it in mm",
        ),
        (
            {"first_position": 12},
            "lies from 12 to 23, outside the model's slices 0 to 11; count in slices of the model",
        ),
        ({"first_position": -11.5}, "outside the model's slices 0 to 11"),
        ({"background": 0.0}, "background was given without a volume or known slices"),
        ({"axis": 3}, "slice_axis is 3; use 0, 1 or 2"),
        ({"axis": 1.0}, "slice_axis is 1.0; use 0, 1 or 2"),
        ({"size": (8, 8)}, r"size is \(8, 8\); give three whole numbers"),
        ({"processor": make_slice_processor(size=None)}, "no grid of its own and no volume gives one; pass size"),
    ],
)
def test_what_does_not_fit_is_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(**arguments)
