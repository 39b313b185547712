import csv

import nibabel as nib
import numpy as np
import pytest
from resampling_runs import AFFINE, make_case

from voxdiff.workflows.masked_cases import MaskedCase, check_cases, read_cases


def write_metadata(folder, rows):
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_files_that_begin_alike_are_a_case(tmp_path):
    for subject in ("a", "b"):
        make_case(subject, folder=tmp_path)
    cases = read_cases(tmp_path, image="image", mask="mask")
    assert [(case.subject, case.name) for case in cases] == [("a", "a"), ("b", "b")]
    assert cases[0].image.name == "a_image.nii.gz" and cases[0].mask.name == "a_mask.nii.gz"
    assert read_cases(tmp_path, mask="mask")[1].image is None


def test_scans_of_one_subject_are_numbered_and_remain_one_subject(tmp_path):
    for name in ("x1", "x2", "y1"):
        make_case(name, folder=tmp_path)
    write_metadata(
        tmp_path,
        [
            {"image_file_name": f"{name}_image.nii.gz", "mask_file_name": f"{name}_mask.nii.gz", "patient": name[0]}
            for name in ("x1", "x2", "y1")
        ],
    )
    cases = read_cases(tmp_path, image="image", mask="mask", subject="patient")
    assert [(case.subject, case.name) for case in cases] == [("x", "x-1"), ("x", "x-2"), ("y", "y")]
    with pytest.raises(ValueError, match="no column owner"):
        read_cases(tmp_path, image="image", mask="mask", subject="owner")


def test_tissue_gives_the_brain_around_a_tumour_its_label(tmp_path):
    lesion, tissue = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    lesion[1, 1, 1], tissue[1:3, 1:3, 1:3] = 3, 2
    for name, values in (("lesion", lesion), ("tissue", tissue), ("flair", tissue)):
        nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / f"a_{name}.nii.gz")
    mask = read_cases(tmp_path, image="flair", mask="lesion", tissue="tissue")[0].load_mask()
    values, counts = np.unique(np.asarray(mask.dataobj), return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {0: 56, 3: 1, 4: 7}
    np.testing.assert_array_equal(mask.affine, AFFINE)


def test_a_tissue_map_lies_on_the_mask_s_grid_and_counts_in_the_hash():
    lesion = nib.Nifti1Image(np.ones((4, 4, 4), np.uint16), AFFINE)
    shifted = AFFINE.copy()
    shifted[0, 3] = 5
    for shape, affine, message in (((4, 4, 4), shifted, "5 mm away"), ((4, 4, 3), AFFINE, "has the shape")):
        case = MaskedCase("a", None, lesion, tissue=nib.Nifti1Image(np.ones(shape, np.uint8), affine))
        with pytest.raises(ValueError, match=f"the tissue map .*{message}"):
            case.load_mask()
    image = nib.Nifti1Image(np.full((4, 4, 4), 0.5, np.float32), AFFINE)
    with pytest.raises(ValueError, match="The tissue map of a holds fractions; give a map of whole numbers"):
        MaskedCase("a", None, lesion, tissue=image).load_mask()
    wrong = nib.Nifti1Image(np.full((4, 4, 4), 7, np.uint8), AFFINE)
    with pytest.raises(ValueError, match="The mask of a: The lesion holds the label 7"):
        MaskedCase("a", None, wrong, tissue=lesion).load_mask()
    assert MaskedCase("a", None, lesion, tissue=lesion).content_hash() != MaskedCase("a", None, lesion).content_hash()


def test_scans_without_a_subject_are_not_one_subject(tmp_path):
    for name in ("x1", "x2"):
        make_case(name, folder=tmp_path)
    rows = [
        {"image_file_name": f"{name}_image.nii.gz", "mask_file_name": f"{name}_mask.nii.gz", "patient": owner}
        for name, owner in (("x1", "x"), ("x2", ""))
    ]
    write_metadata(tmp_path, rows)
    with pytest.raises(ValueError, match=r"Column patient of .* is empty for 1 scans"):
        read_cases(tmp_path, image="image", mask="mask", subject="patient")


def test_a_grid_is_read_without_the_voxels(tmp_path):
    case = make_case("a", folder=tmp_path)
    assert case.mask_grid() == make_case("b", seed=1).mask_grid()
    turned = nib.Nifti1Image(np.asarray(make_case("a").mask.dataobj), np.diag([-2.0, 2.0, 3.0, 1.0]))
    assert MaskedCase("a", None, turned).mask_grid() != case.mask_grid()
    case.mask.write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read"):
        case.mask_grid()


def test_a_hash_tells_content_and_not_place(tmp_path):
    (tmp_path / "other").mkdir()
    first = make_case("a", folder=tmp_path)
    moved = make_case("a", folder=tmp_path / "other")
    assert first.content_hash() == moved.content_hash()
    assert first.content_hash() != make_case("a", seed=1, folder=tmp_path).content_hash()
    assert MaskedCase("b", first.image, first.mask, "a").content_hash() != moved.content_hash()


def test_labels_of_the_outside_may_be_negative():
    mask = nib.Nifti1Image(np.array([[[-1, 3]]], np.int16), AFFINE)
    assert np.asarray(MaskedCase("a", None, mask).load_mask().dataobj).tolist() == [[[-1, 3]]]


@pytest.mark.parametrize("wrong", [0.5, 300.0])
def test_a_mask_holds_labels(wrong):
    mask = nib.Nifti1Image(np.full((2, 2, 2), wrong, np.float32), AFFINE)
    with pytest.raises(ValueError, match=f"mask of a holds the value {wrong:g}"):
        MaskedCase("a", None, mask).load_mask()


@pytest.mark.parametrize(
    ("names", "message"), [([], "no cases"), (["a", "a"], "2 cases are called 'a'"), (["a/b"], "called 'a/b'")]
)
def test_names_are_file_names(names, message):
    with pytest.raises(ValueError, match=message):
        check_cases([MaskedCase(name, None, "mask.nii.gz") for name in names])
