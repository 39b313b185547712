import nibabel as nib
import numpy as np
import pytest
from resampling_runs import make_case

from voxdiff.workflows.nnunet_dataset import NnUNetDataset, export_resampled


def dataset(folder, **changes):
    settings = {"dataset_id": 12, "name": "E", "channel": "FLAIR", "labels": {"tumour": 1}, "to_background": (4,)}
    return NnUNetDataset(folder=folder, **{**settings, **changes})


@pytest.fixture
def volumes(tmp_path):
    case = make_case("a", folder=tmp_path)
    return {"a-v0": (case.image, case.mask)}


def test_labels_of_no_interest_become_background(volumes, tmp_path):
    folder = export_resampled(volumes, dataset(tmp_path / "raw"))
    exported = np.asarray(nib.load(folder / "labelsTr" / "a-v0.nii.gz").dataobj)
    given = np.asarray(nib.load(volumes["a-v0"][1]).dataobj)
    np.testing.assert_array_equal(exported, np.where(given == 4, 0, given))
    assert (folder / "imagesTr" / "a-v0_0000.nii.gz").exists()


def test_a_label_without_a_name_is_refused(volumes, tmp_path):
    with pytest.raises(ValueError, match="holds 4; the labels are"):
        export_resampled(volumes, dataset(tmp_path / "raw", to_background=()))


def test_what_a_killed_export_left_is_removed_and_nothing_else(volumes, tmp_path):
    for name in (".tmp-01-Dataset012_E", ".tmp-01-Dataset013_F"):
        (tmp_path / "raw" / name).mkdir(parents=True)
    export_resampled(volumes, dataset(tmp_path / "raw"))
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == [".tmp-01-Dataset013_F", "Dataset012_E"]


def test_nothing_to_export_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="Every volume was rejected"):
        export_resampled({}, dataset(tmp_path))
