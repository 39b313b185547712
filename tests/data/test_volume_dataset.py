import csv

import numpy as np
import pytest
import torch
from conftest import make_processor
from training_runs import truncate, write_volumes

from voxdiff.data.cohort_files import write_cohort
from voxdiff.data.volume_dataset import VolumeDataset, find_subjects
from voxdiff.volumes import VolumeProcessor

PLAIN = VolumeProcessor(intensity="minmax")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A niftifolder data set of two contrasts and a label map, two subjects and one for validation."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, 2, size=16, contrasts=("t1", "t2"), lesions=True)
    write_cohort(folder, 1, "val", size=16, contrasts=("t1", "t2"), lesions=True)
    return folder


def names_of(subjects, column):
    return [subject[column].name for subject in subjects]


def test_every_file_of_a_plain_folder_is_a_subject(tmp_path):
    write_volumes(tmp_path, ["b.nii", "deep/er/a.nii.gz", "._a.nii.gz"])
    (tmp_path / "notes.txt").write_text("no volume")
    subjects = find_subjects(tmp_path, ["image"])
    assert names_of(subjects, "image") == ["b.nii", "a.nii.gz"]
    assert [subject["subject_id"] for subject in subjects] == ["b", "a"]


@pytest.mark.parametrize(
    "names",
    [
        ["P1/P1-t1n.nii.gz", "P1/P1-t2w.nii.gz", "P1/P1-seg.nii.gz", "P2/P2-t1n.nii.gz", "P2/P2-t2w.nii.gz"],
        ["P1_T1N.nii.gz", "P1_T2W.nii.gz", "P2_t1n.nii", "P2_t2w.nii", "P1_st1n.nii.gz"],
        ["P1/t1n.nii.gz", "P1/t2w.nii.gz", "P2/t1n.nii.gz", "P2/t2w.nii.gz"],
    ],
)
def test_contrasts_are_grouped_by_name(tmp_path, names):
    write_volumes(tmp_path, names)
    subjects = find_subjects(tmp_path, ["t1n", "t2w"])
    assert [subject["subject_id"] for subject in subjects] == ["P1", "P2"]
    for subject in subjects:
        assert all(subject["subject_id"] in str(subject[column].relative_to(tmp_path)) for column in ("t1n", "t2w"))
        assert "t1n" in subject["t1n"].name.lower()
        assert "t2w" in subject["t2w"].name.lower()


def test_splits_of_a_plain_folder(tmp_path):
    write_volumes(tmp_path, ["train/a.nii.gz", "test/b.nii.gz"])
    assert names_of(find_subjects(tmp_path, ["image"]), "image") == ["a.nii.gz"]
    assert names_of(find_subjects(tmp_path, ["image"], split="test"), "image") == ["b.nii.gz"]
    with pytest.raises(ValueError, match="no folder 'val'"):
        find_subjects(tmp_path, ["image"], split="val")


def test_a_niftifolder_has_columns_and_splits(cohort):
    subjects = find_subjects(cohort, ["t2", "lesion"])
    assert names_of(subjects, "t2") == [f"sim-0000000{index}_t2.nii.gz" for index in range(2)]
    assert names_of(subjects, "lesion") == [f"sim-0000000{index}_lesion.nii.gz" for index in range(2)]
    assert [subject["subject_id"] for subject in subjects] == ["sim-00000000", "sim-00000001"]
    assert names_of(find_subjects(cohort, ["t1"], split="validation"), "t1") == ["sim-10000000_t1.nii.gz"]
    assert names_of(find_subjects(cohort / "train", ["t1"]), "t1") == names_of(find_subjects(cohort, ["t1"]), "t1")


@pytest.mark.parametrize(("column", "split"), [("flair", None), ("seed", None), ("t1", "nosuch")])
def test_what_a_niftifolder_lacks_is_named(cohort, column, split):
    with pytest.raises(ValueError, match=column if split is None else split):
        find_subjects(cohort, [column], split=split)


@pytest.mark.parametrize(
    ("names", "columns", "error", "message"),
    [
        ([], ["image"], FileNotFoundError, "holds no NIfTI file"),
        (["a.nii.gz"], ["t1", "t2"], FileNotFoundError, "no file whose name ends with one of t1, t2"),
        (["a-t1.nii.gz", "a-t2.nii.gz", "b-t1.nii.gz"], ["t1", "t2"], ValueError, "has no b-t2.nii.gz"),
    ],
)
def test_a_folder_that_lacks_something(tmp_path, names, columns, error, message):
    write_volumes(tmp_path, names)
    with pytest.raises(error, match=message):
        find_subjects(tmp_path, columns)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_subjects(tmp_path / "nosuch", columns)


def test_items_are_in_the_value_range_on_the_processor_s_grid(tmp_path):
    write_volumes(tmp_path, ["a.nii.gz"], size=(20, 18, 10))
    item = VolumeDataset(find_subjects(tmp_path, ["image"]), {"image": make_processor()})[0]
    assert item["image"].shape == (1, 16, 16, 8)
    assert item["image"].dtype == torch.float32
    assert item["image"].min() >= -1
    assert item["image"].max() <= 1
    assert item["image"].std() > 0.1


def test_hounsfield_units_have_to_be_stated_where_they_are_in_doubt(tmp_path):
    write_volumes(tmp_path, ["a.nii.gz"], high=900)
    processor = VolumeProcessor(intensity="window", low=-1000, high=1000)
    subjects = find_subjects(tmp_path, ["ct"])
    with pytest.raises(ValueError, match="does not look like CT"):
        VolumeDataset(subjects, {"ct": processor}).check()
    assert VolumeDataset(subjects, {"ct": processor}, unit="HU").check() == []


def test_the_cache_spares_the_second_reading_and_follows_the_file(tmp_path):
    write_volumes(tmp_path / "data", ["a.nii.gz"], high=2)
    cache = tmp_path / "cache"

    def load(**changes):
        processor = make_processor(**changes)
        return VolumeDataset(find_subjects(tmp_path / "data", ["image"]), {"image": processor}, cache_dir=cache)[0][
            "image"
        ]

    first = load()
    assert len(list(cache.iterdir())) == 1
    (tmp_path / "data" / "a.nii.gz").touch()  # a new time is a new file
    assert torch.equal(load(), first)
    assert len(list(cache.iterdir())) == 2
    assert not torch.equal(load(value_range=(0, 1)), first)
    stored = sorted(cache.iterdir())
    assert len(stored) == 3
    assert torch.equal(load(), first)
    assert sorted(cache.iterdir()) == stored
    write_volumes(tmp_path / "data", ["a.nii.gz"], low=-5, size=(16, 16, 18))
    assert not torch.equal(load(), first)


def test_a_cached_subject_is_not_read_again(tmp_path, monkeypatch):
    write_volumes(tmp_path, ["a.nii.gz"])
    dataset = VolumeDataset(find_subjects(tmp_path, ["image"]), {"image": PLAIN}, cache_dir=tmp_path / "cache")
    first = dataset[0]["image"]
    monkeypatch.setattr(VolumeProcessor, "preprocess", None)
    assert torch.equal(dataset[0]["image"], first)
    assert dataset.check() == []
    assert dataset.spacing == (3.0, 3.0, 3.0)


def test_check_finds_the_grid_and_the_spacing(tmp_path):
    write_volumes(tmp_path, ["a.nii.gz"], spacing=2.0)
    dataset = VolumeDataset(find_subjects(tmp_path, ["image"]), {"image": PLAIN})
    assert dataset.check() == []
    assert (dataset.grid, dataset.spacing) == ((16, 16, 16), (2.0, 2.0, 2.0))
    write_volumes(tmp_path, ["b.nii.gz"], spacing=3.0)
    dataset = VolumeDataset(find_subjects(tmp_path, ["image"]), {"image": PLAIN})
    dataset.check()
    assert dataset.spacing is None


@pytest.mark.parametrize("spoil", [truncate, lambda path: path.write_bytes(b"nothing"), lambda path: path.unlink()])
def test_a_broken_file_is_named_or_skipped(tmp_path, spoil):
    write_volumes(tmp_path, ["a.nii.gz", "b.nii.gz", "c.nii.gz"])
    subjects = find_subjects(tmp_path, ["image"])
    spoil(tmp_path / "b.nii.gz")
    with pytest.raises(ValueError, match=r"1 of 3 subjects cannot be used \(b: .*b\.nii\.gz.*--skip_bad_files"):
        VolumeDataset(subjects, {"image": PLAIN}).check()
    dataset = VolumeDataset(subjects, {"image": PLAIN})
    (problem,) = dataset.check(skip_bad_files=True)
    assert "b.nii.gz" in problem
    assert len(dataset) == 2
    assert dataset.volumes(1, ["image"]) == {"image": tmp_path / "c.nii.gz"}
    assert torch.equal(dataset[1]["image"], VolumeDataset(subjects[2:], {"image": PLAIN})[0]["image"])


def test_a_data_set_s_broken_file_is_named_too(tmp_path):
    write_volumes(tmp_path, ["a.nii.gz", "b.nii.gz"])
    truncate(tmp_path / "b.nii.gz")
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["t1_file_name", "subject_id"], ["a.nii.gz", "one"], ["b.nii.gz", "two"]])
    with pytest.raises(ValueError, match=r"\(two: .*b\.nii\.gz"):
        VolumeDataset(find_subjects(tmp_path, ["t1"]), {"t1": PLAIN}).check()


def test_nothing_left_is_an_error_even_when_skipping(tmp_path):
    write_volumes(tmp_path, [f"{index}.nii.gz" for index in range(5)])
    for path in tmp_path.iterdir():
        truncate(path)
    with pytest.raises(ValueError, match=r"None of the 5 subjects .* and 2 more"):
        VolumeDataset(find_subjects(tmp_path, ["image"]), {"image": PLAIN}).check(skip_bad_files=True)


def test_different_grids_are_refused_between_and_within_subjects(tmp_path):
    write_volumes(tmp_path, ["a-t1.nii.gz", "a-t2.nii.gz", "b-t1.nii.gz"])
    write_volumes(tmp_path, ["b-t2.nii.gz"], size=(16, 16, 8))
    processors = {"t1": PLAIN, "t2": PLAIN}
    with pytest.raises(ValueError, match="b: its volumes lie on different grids"):
        VolumeDataset(find_subjects(tmp_path, ["t1", "t2"]), processors).check()
    with pytest.raises(ValueError, match=r"different grids \(\(16, 16, 8\), \(16, 16, 16\)\).*--resolution"):
        VolumeDataset(find_subjects(tmp_path, ["t2"]), {"t2": PLAIN}).check()
    assert VolumeDataset(find_subjects(tmp_path, ["t2"]), {"t2": make_processor()}).check() == []


def test_arrays_and_images_are_subjects_too():
    values = np.arange(16**3, dtype=np.float32).reshape(16, 16, 16)
    dataset = VolumeDataset([{"image": values}, {"image": torch.from_numpy(values)}], {"image": PLAIN})
    assert torch.equal(dataset[0]["image"], dataset[1]["image"])
    assert dataset.check() == []
