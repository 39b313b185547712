import json

import nibabel as nib
import numpy as np
from resampling_runs import AFFINE, make_case, make_informed_slice_pipeline
from typer.testing import CliRunner

from voxdiff.cli.main import app


def run(*arguments):
    given = ["counterfactual", *arguments, "--steps", 1, "--device", "cpu"]
    return CliRunner().invoke(app, list(map(str, given)), env={"COLUMNS": "200"})


def test_two_volumes_their_difference_and_a_picture(tmp_path):
    make_informed_slice_pipeline().save_pretrained(tmp_path / "model")
    case = make_case("s0", folder=tmp_path)
    labels = np.asarray(nib.load(case.mask).dataobj).copy()
    labels[6:9, 4:7, 2:4] = 3
    nib.save(nib.Nifti1Image(labels, AFFINE), tmp_path / "edited.nii.gz")
    given = (tmp_path / "model", case.image, case.mask, tmp_path / "edited.nii.gz", "--out", tmp_path / "out")
    result = run(*given, "--seed", 4)
    assert result.exit_code == 0, result.output
    assert "inside the edit" in result.output
    assert len(list((tmp_path / "out").iterdir())) == 6
    record = json.loads((tmp_path / "out" / "counterfactual.json").read_text())
    assert [made["seed"] for made in record["provenance"]] == [4, 4]
    difference = record["mean_absolute_difference"]
    assert difference["inside the edit"] > 0
    result = run(*given, "--slice-index", 9, "--seed", 4)
    assert result.exit_code == 1 and "holds another counterfactual" in result.output


def test_the_same_mask_is_one_sentence(tmp_path):
    make_informed_slice_pipeline().save_pretrained(tmp_path / "model")
    case = make_case("s0", folder=tmp_path)
    result = run(tmp_path / "model", case.image, case.mask, case.mask, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "is its own mask; edit it first" in result.output
    assert not (tmp_path / "out").exists()
