import pytest
from training_runs import write_volumes

from voxdiff.data.metadata import read_columns
from voxdiff.data.volume_dataset import find_subjects


@pytest.fixture
def folder(tmp_path):
    write_volumes(tmp_path / "train", [f"{name}.nii.gz" for name in "abc"])
    rows = ["image_file_name,kind,age", "b.nii.gz,ct,50", "a.nii.gz,mr,", "c.nii.gz,ct,70"]
    (tmp_path / "train" / "metadata.csv").write_text("\n".join(rows))
    return tmp_path


def test_values_stand_in_the_order_of_the_subjects(folder):
    columns = read_columns(folder, ["kind", "age"])
    files = [subject["image"].name for subject in find_subjects(folder, ["image"])]
    assert dict(zip(files, columns["kind"], strict=True)) == {"b.nii.gz": "ct", "a.nii.gz": "mr", "c.nii.gz": "ct"}
    assert columns["age"][files.index("c.nii.gz")] == 70
    assert columns["age"][files.index("a.nii.gz")] is None


def test_a_missing_column_or_missing_metadata_are_named(folder):
    with pytest.raises(ValueError, match="have no column weight; there are kind, age"):
        read_columns(folder, ["weight"])
    (folder / "train" / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"has no metadata.csv to read kind from"):
        read_columns(folder, ["kind"])
