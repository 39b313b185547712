import json

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from voxdiff.cli.main import app


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    out = tmp_path_factory.mktemp("cohort")
    for place, case in enumerate(("train/a", "train/b", "test/c")):
        (out / case).parent.mkdir(exist_ok=True)
        for name in ("flair", "t1", "lesion"):
            values = np.random.default_rng(place).integers(0, 4, (4, 4, 4)).astype(np.uint8)
            nib.save(nib.Nifti1Image(values, np.diag([2, 2, 2, 1])), out / f"{case}_{name}.nii.gz")
    return out


def run(cohort, out, *arguments):
    given = ["--image", "flair=FLAIR", "--image", "t1", "--label", "lesion", "--id", 11, "--name", "Sim", *arguments]
    return CliRunner().invoke(app, ["export-nnunet", str(cohort), str(out), *map(str, given)], env={"COLUMNS": "200"})


REGIONS = ("--labels", "WT=1,2,3", "--labels", "TC=1,3", "--labels", "ET=3")


def test_exports_a_cohort_with_regions_and_test_images(cohort, tmp_path):
    result = run(cohort, tmp_path, *REGIONS, "--test-split", "test")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "Dataset011_Sim"
    description = json.loads((folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "FLAIR", "1": "t1"}
    assert description["labels"] == {"background": 0, "WT": [1, 2, 3], "TC": [1, 3], "ET": 3}
    assert description["regions_class_order"] == [2, 1, 3] and description["numTraining"] == 2
    assert len(list((folder / "imagesTr").iterdir())) == 4 and len(list((folder / "imagesTs").iterdir())) == 2
    assert "2 training and 1 test cases" in result.output and "nnUNetv2_plan_and_preprocess -d 11" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--labels", "tumour"), "write NAME=1"),
        (("--labels", "core=1", "--labels", "rest=3"), "without gaps"),
        (("--labels", "core=1"), "name or remap the others"),
        ((*REGIONS, "--image", "t2"), "t2.nii.gz; every subject needs"),
    ],
)
def test_bad_input_is_one_sentence(cohort, tmp_path, arguments, message):
    result = run(cohort, tmp_path, *arguments)
    assert result.exit_code == 1
    assert message in result.output and "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []
