import json

import nibabel as nib
import pytest
from resampling_runs import make_case, make_informed_slice_pipeline
from typer.testing import CliRunner

from voxdiff.cli.main import app


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    make_informed_slice_pipeline().save_pretrained(folder)
    return folder


NNUNET = ("--nnunet", "raw", "--nnunet-id", 12, "--nnunet-label", "tumour=1", "--nnunet-background", "4")


def run(*arguments):
    given = ["harmonize", *arguments, "--image", "image", "--steps", 1, "--device", "cpu"]
    return CliRunner().invoke(app, list(map(str, given)), env={"COLUMNS": "200"})


def test_every_mask_gets_a_volume_with_the_slice(model, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for place in range(2):
        make_case(f"s{place}", seed=place, folder=tmp_path / "data")
    donor = make_case("donor", seed=9, folder=tmp_path).image
    monkeypatch.chdir(tmp_path)
    result = run(model, tmp_path / "data", donor, tmp_path / "out", "--slice-index", 4, "--seed", 3, *NNUNET)
    assert result.exit_code == 0, result.output
    assert "2 volume(s)" in result.output
    assert nib.load(tmp_path / "out" / "s1-v0_image.nii.gz").shape == (16, 12, 10)
    settings = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]
    assert (settings["command"], settings["seed"]) == ("harmonize", 3)
    assert (settings["informed_slice"]["file"], settings["informed_slice"]["index"]) == ("donor_image.nii.gz", 4)
    assert (tmp_path / "raw" / "Dataset012_Harmonized" / "imagesTr" / "s1-v0_0000.nii.gz").is_file()


def test_a_slice_that_is_not_there_is_one_sentence(model, tmp_path):
    case = make_case("s0", folder=tmp_path)
    result = run(model, tmp_path, tmp_path / "none.nii.gz", tmp_path / "out")
    assert result.exit_code == 1 and "none.nii.gz" in result.output and "Traceback" not in result.output
    result = run(model, tmp_path, case.image, tmp_path / "out", "--slice-index", 40)
    assert result.exit_code == 1 and "is slice 40 of a volume with the slices 0 to 9" in result.output
    result = run(model, tmp_path, "generated", tmp_path / "out", "--slice-index", 3)
    assert (
        result.exit_code == 1 and "--slice-index belongs to a volume, and the slice is to be generated" in result.output
    )
