"""The exported folder is what nnU-Net v2 documents, and what it would refuse or misread is refused here."""

import json

import nibabel as nib
import numpy as np
import pytest

from voxdiff.metrics.nnunet import export_nnunet

AFFINE = np.array([[-1.5, 0, 0, 30], [0, 1.2, 0, -20], [0, 0, 2.0, 5], [0, 0, 0, 1]])
LABELS = {"background": 0, "core": 1, "oedema": 2, "enhancing": 3}
BRATS = {"background": 0, "WT": (1, 2, 3), "TC": (1, 3), "ET": 3}


def image(values=None, affine=AFFINE, shape=(6, 5, 4)):
    if values is None:
        values = np.random.default_rng(0).random(shape, dtype=np.float32)
    return nib.Nifti1Image(values, affine)


def label_map(highest=3, **arguments):
    return image(np.arange(120).reshape(6, 5, 4).astype(np.uint8) % (highest + 1), **arguments)


def subject(name="case-1", **changes):
    return {"subject_id": name, "flair": image(), "t1": image(), "label": label_map(), **changes}


def export(out, subjects=None, **changes):
    arguments = {
        "dataset_id": 7,
        "dataset_name": "Tumours",
        "channel_names": {"flair": "FLAIR", "t1": "T1"},
        "labels": LABELS,
        **changes,
    }
    return export_nnunet([subject()] if subjects is None else subjects, out, **arguments)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_folder_has_nnunets_layout(tmp_path):
    test = {"subject_id": "case-3", "flair": image(), "t1": image()}
    folder = export(tmp_path, [subject("case-1"), subject("case-2")], test_subjects=[test])
    assert folder == tmp_path / "Dataset007_Tumours"
    assert names(folder) == [
        "dataset.json",
        *[f"imagesTr/case-{case}_000{channel}.nii.gz" for case in (1, 2) for channel in (0, 1)],
        *[f"imagesTs/case-3_000{channel}.nii.gz" for channel in (0, 1)],
        "labelsTr/case-1.nii.gz",
        "labelsTr/case-2.nii.gz",
    ]
    description = json.loads((folder / "dataset.json").read_text())
    assert description == {
        "channel_names": {"0": "FLAIR", "1": "T1"},
        "labels": LABELS,
        "numTraining": 2,
        "file_ending": ".nii.gz",
        "converted_by": "voxdiff export-nnunet",
    }


def test_values_and_geometry_survive(tmp_path):
    case = subject(t1=image(np.full((6, 5, 4), 2.5, np.float32)), label=label_map(affine=AFFINE + 1e-4 * np.eye(4)))
    folder = export(tmp_path, [case], file_ending=".nii")
    flair, t1 = (nib.load(folder / "imagesTr" / f"case-1_000{channel}.nii") for channel in (0, 1))
    np.testing.assert_array_equal(flair.get_fdata(), case["flair"].get_fdata())
    assert t1.get_fdata().min() == 2.5
    labels = nib.load(folder / "labelsTr" / "case-1.nii")
    np.testing.assert_array_equal(np.asarray(labels.dataobj), np.asarray(case["label"].dataobj))
    assert labels.get_data_dtype() == np.uint8
    for written in (flair, labels):
        np.testing.assert_allclose(written.affine, AFFINE)
        np.testing.assert_allclose(written.get_qform(), AFFINE, atol=1e-5)
        assert written.header.get_xyzt_units()[0] == "mm"


def test_files_are_read_as_images_are(tmp_path):
    case = subject()
    for key in ("flair", "t1", "label"):
        nib.save(case[key], tmp_path / f"{key}.nii.gz")
    files = {"subject_id": "case-1", **{key: tmp_path / f"{key}.nii.gz" for key in ("flair", "t1", "label")}}
    first, second = export(tmp_path / "a", [case]), export(tmp_path / "b", [files])
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names(first))


def test_regions_bring_their_painting_order(tmp_path):
    description = json.loads((export(tmp_path, labels=BRATS) / "dataset.json").read_text())
    assert description["regions_class_order"] == [2, 1, 3]
    assert description["labels"]["WT"] == [1, 2, 3]


def test_an_ignore_label_is_no_region(tmp_path):
    labels = {"background": 0, "all": (1, 2), "core": 1, "ignore": 3}
    description = json.loads((export(tmp_path, labels=labels) / "dataset.json").read_text())
    assert description["regions_class_order"] == [2, 1]


def test_the_same_export_again_changes_nothing(tmp_path):
    folder = export(tmp_path)
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    export(tmp_path)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before


def test_an_empty_folder_is_filled_and_another_one_kept(tmp_path):
    folder = tmp_path / "Dataset007_Tumours"
    folder.mkdir()
    export(tmp_path)
    with pytest.raises(ValueError, match="holds another data set"):
        export(tmp_path, labels={**LABELS, "cyst": 4})
    with pytest.raises(ValueError, match="holds another export"):
        export(tmp_path, [subject(flair=image(np.zeros((6, 5, 4), np.float32)))])
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds another export"):
        export(tmp_path)
    assert (folder / "notes.txt").read_text() == "mine" and len(names(folder)) == 5
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="case-2"):
        export(tmp_path / "out", [subject("case-1"), subject("case-2", label=label_map(highest=9))])
    assert list((tmp_path / "out").iterdir()) == []


SHEARED = AFFINE + np.array([[0, 0.7, 0, 0], *np.zeros((3, 4))])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (subject(label=label_map(highest=4)), r"holds 4; the labels are \[0, 1, 2, 3\]"),
        (subject(label=image(np.full((6, 5, 4), 0.5, np.float32))), "holds 0.5; the labels are"),
        (subject(label=label_map(affine=AFFINE + 0.01 * np.eye(4))), "mm away from its image"),
        (subject(label=image(np.zeros((6, 5, 3), np.uint8))), r"shape \(6, 5, 3\) and its image \(6, 5, 4\)"),
        (subject(t1=image(affine=AFFINE @ np.diag([-1, 1, 1, 1]))), "channel 't1' lies up to"),
        (subject(name="a/b"), "subject_id is 'a/b'"),
        (subject(flair=image(affine=SHEARED), t1=image(affine=SHEARED), label=label_map(affine=SHEARED)), "sheared"),
        ({"subject_id": "case-1", "flair": image()}, "lacks t1, label"),
    ],
)
def test_cases_that_nnunet_would_refuse_or_misread(tmp_path, case, message):
    with pytest.raises(ValueError, match=message):
        export(tmp_path, [case])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subjects": []}, "no training subjects"),
        ({"subjects": [subject(), subject()]}, "comes twice"),
        ({"test_subjects": [subject()]}, "comes twice"),
        ({"dataset_id": 1000}, "1 to 999"),
        ({"dataset_name": "my data"}, "letters, digits"),
        ({"file_ending": ".mha"}, "allowed are .nii.gz, .nii"),
        ({"channel_names": {}}, "at least one channel"),
        ({"channel_names": {"flair": "MR", "t1": "MR"}}, "each name once"),
        ({"labels": {"core": 1}}, "'background': 0"),
        ({"labels": {"background": 0, "core": 2}}, "without gaps"),
        ({"labels": {"background": 0}}, "without gaps"),
        ({"labels": {"background": 0, "ET": 3, "WT": (1, 2, 3)}}, "from large to small"),
    ],
)
def test_impossible_arguments(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()
