import json

import nibabel as nib
import numpy as np
import pytest
from slice_pipelines import make_slice_pipeline, make_slice_unet
from typer.testing import CliRunner

from voxdiff.cli.main import app


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    unet = make_slice_unet(position_embedding="relative+absolute", position_scale=11.0)
    make_slice_pipeline(unet).save_pretrained(folder)
    return folder


@pytest.fixture
def scan(tmp_path):
    values = np.random.default_rng(0).random((8, 8, 4), dtype=np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([-2, 2, 6, 1])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def run(scan, out, model, *arguments):
    given = ["interpolate", scan, out, "--model", model, "--steps", 1, "--device", "cpu", *arguments]
    return CliRunner().invoke(app, list(map(str, given)), env={"COLUMNS": "200"})


def test_a_thick_scan_comes_back_thin_with_its_record(model, scan, tmp_path):
    result = run(scan, tmp_path / "out", model, "--slice-spacing", 3, "--num-volumes", 2, "--seed", 5)
    assert result.exit_code == 0, result.output
    volumes = [nib.load(tmp_path / "out" / f"scan-000{index}.nii.gz") for index in (0, 1)]
    assert volumes[0].shape == (8, 8, 7) and volumes[0].header.get_zooms() == (2, 2, 3)
    first, second = (volume.get_fdata(dtype=np.float32) for volume in volumes)
    np.testing.assert_array_equal(first[..., ::2], nib.load(scan).get_fdata(dtype=np.float32))
    assert (first[..., 1::2] != second[..., 1::2]).any()
    record = json.loads((tmp_path / "out" / "scan-0001.json").read_text())
    assert (record["seed"], record["conditions"]["source"]) == (6, str(scan))
    assert (tmp_path / "out" / "scan-0000.png").exists()


def test_every_option_reaches_the_pipeline(model, scan, tmp_path):
    options = ["--factor", 2, "--extend", 1, 2, "--corrupted", "0,2", "--slice-axis", 1, "--first-position", 1.5]
    options += ["--intensity-range", 0, 3, "--unit", "mT"]
    result = run(scan, tmp_path / "out", model, *options, "--scheduler", "ddim")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "scan-0000.json").read_text())
    conditions = record["conditions"]
    assert conditions["known_slices"] == [3, 7, 9, 11, 13, 15] and conditions["first_position"] == 1.5
    assert conditions["intensity_range"] == [0, 3]
    assert record["scheduler"]["class"] == "DDIMScheduler"
    image = nib.load(tmp_path / "out" / "scan-0000.nii.gz")
    assert image.shape == (8, 18, 4) and b"mT" in image.header["descrip"].item()


def test_few_slices_of_a_scan_are_used_in_another_order(model, scan, tmp_path):
    options = ["--known-indices", "0,3", "--scheme", "autoregressive", "--background", 0, "--max-batch", 1]
    result = run(scan, tmp_path / "out", model, *options)
    assert result.exit_code == 0, result.output
    conditions = json.loads((tmp_path / "out" / "scan-0000.json").read_text())["conditions"]
    assert (conditions["known_slices"], conditions["scheme"]) == ([0, 3], "autoregressive")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "the result has 4 slices and all are known; give a factor above 1"),
        (("--corrupted", "1-3"), "--corrupted is '1-3'; write whole numbers with commas"),
        (("--known-indices", "0;3"), "--known-indices is '0;3'; write whole numbers with commas"),
        (("--background", 1e6), "give the value outside the patient"),
        (("--corrupted", "0", "--max-batch", 0), "max_batch is 0"),
        (("--corrupted", "9"), "corrupted has the slice 9; give whole numbers from 0 to 3"),
        (("--factor", 2, "--num-volumes", 0), "--num-volumes is 0"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(model, scan, tmp_path, arguments, sentence):
    result = run(scan, tmp_path / "out", model, *arguments)
    assert result.exit_code == 1 and sentence in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_another_kind_of_model_is_refused(pipe, scan, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    result = run(scan, tmp_path / "out", tmp_path / "model", "--factor", 2)
    assert result.exit_code == 1 and "is a WaveletDiffusionPipeline; give a SliceConditionedPipeline" in result.output
