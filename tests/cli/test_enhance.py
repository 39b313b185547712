import json

import nibabel as nib
import numpy as np
import pytest
from resampling_runs import contents, make_case, make_informed_slice_pipeline
from typer.testing import CliRunner

from voxdiff.cli.main import app


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    make_informed_slice_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for place in range(5):
        make_case(f"s{place}", seed=place, folder=folder)
    return folder


def run(model, data, out, *arguments):
    given = ["enhance", model, data, out, "--steps", 1, "--device", "cpu", *arguments]
    return CliRunner().invoke(app, list(map(str, given)), env={"COLUMNS": "200"})


def test_writes_a_data_set_with_slices_of_others(model, data, tmp_path):
    result = run(model, data, tmp_path / "out", "--variants", 2, "--augment-masks", "--start-position", 0.6)
    assert result.exit_code == 0, result.output
    assert "10 volume(s)" in result.output
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["complete"] and manifest["settings"]["start_position"] == 0.6
    assert all(volume["subject"] != volume["slice_from_subject"] for volume in manifest["volumes"])
    image = nib.load(tmp_path / "out" / "s3-v1_image.nii.gz")
    assert image.shape == (16, 12, 10) and np.asarray(image.dataobj).std() > 0
    np.testing.assert_allclose(image.affine, nib.load(data / "s3_mask.nii.gz").affine)
    record = json.loads((tmp_path / "out" / "s3-v1.json").read_text())
    assert record["provenance"]["weights_sha256"] and "seconds" not in record["provenance"]


def test_again_is_the_same(model, data, tmp_path):
    run(model, data, tmp_path / "a")
    run(model, data, tmp_path / "b")
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first == second and len(first) == 2 + 3 * 5


def test_filters_reject_and_say_why(model, data, tmp_path):
    out = tmp_path / "out"
    result = run(model, data, out, "--filter", "outlier=0.5", "--filter", "memorisation=0.1")
    assert result.exit_code == 0, result.output
    assert "0 volume(s)" in result.output and "Rejected: 5" in result.output and "robust standard dev" in result.output
    checks = json.loads((out / "s0-v0.json").read_text())["checks"]
    assert [check["filter"] for check in checks] == ["outlier", "memorisation"]
    assert not list(out.glob("*.nii.gz")) and len(json.loads((out / "manifest.json").read_text())["rejections"]) == 5


def test_the_segmenter_is_trained_once_and_named(model, data, tmp_path):
    options = ("--filter", "mask-agreement=0", "--segmenter", tmp_path / "net", "--segmenter-steps", 1)
    for out in ("a", "b"):
        result = run(model, data, tmp_path / out, *options, "--agreement-labels", "1")
        assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "a" / "manifest.json").read_text())["settings"]
    assert len(settings["filters"][0]["segmenter"]) == 64 and settings["filters"][0]["labels"] == [1]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    result = run(model, data, tmp_path / "c", *options[:4], "--segmenter-steps", 2)
    assert result.exit_code == 1 and "was trained for 1 steps and --segmenter-steps is 2" in result.output


def test_no_segmenter_is_trained_for_filters_that_cannot_be_used(model, data, tmp_path):
    options = ("--segmenter", tmp_path / "net", "--segmenter-steps", 1, "--filter")
    for texts in (("mask-agreement=2",), ("mask-agreement", "--filter", "memorisation=-1")):
        result = run(model, data, tmp_path / "out", *options, *texts)
        assert result.exit_code == 1 and "threshold" in result.output
    assert not (tmp_path / "net").exists()


def test_nnunet(model, data, tmp_path):
    options = ("--nnunet-id", 12, "--nnunet-label", "tumour=1", "--nnunet-background", "4")
    result = run(model, data, tmp_path / "out", "--nnunet", tmp_path / "raw", *options)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "raw" / "Dataset012_Enhanced"
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--informed", "none"), "this model takes an informed slice"),
        (("--informed", "generated"), "no slice_unet to generate one"),
        (("--informed", "others"), "allowed are cross, own, generated, none"),
        (("--filter", "blur"), "with one of mask-agreement, memorisation, outlier"),
        (("--filter", "outlier=high"), "the threshold is a number"),
        (("--filter", "mask-agreement"), "needs --segmenter"),
        (("--filter", "outlier", "--filter", "outlier=4"), "names one filter twice: outlier, outlier=4"),
        (("--segmenter", "net"), "belong to --filter mask-agreement"),
        (("--segmenter-steps", 5), "belong to --filter mask-agreement"),
        (("--anatomy", "organs"), "belong to --augment-masks"),
        (("--augment-masks", "--anatomy", "organs", "--brain-label", 4), "belong to --anatomy brain"),
        (("--augment-masks", "--brain-label", 7), "no voxel of the brain label 7"),
        (("--nnunet", "raw"), "needs --nnunet-id"),
        (("--nnunet-channel", "CT"), "belong to --nnunet"),
        (("--mask", "lesion"), "lesion"),
        (("--variants", 0), "variants is 0"),
        (("--start-position", 1.5), "start_position is 1.5"),
        (("--steps", 0), "num_inference_steps is 0"),
    ],
)
def test_bad_input_is_one_sentence(model, data, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run(model, data, tmp_path / "out", *arguments)
    assert result.exit_code == 1
    assert message in result.output and "Traceback" not in result.output
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_a_pool_of_one_an_empty_mask_and_an_unknown_label_are_one_sentence(model, tmp_path):
    case = make_case("s0", folder=tmp_path)
    assert "no subject besides s0" in run(model, tmp_path, tmp_path / "out").output
    mask = nib.load(case.mask)
    for value, message in ((0, "s0-v0: The mask is empty"), (2, "s0-v0: The mask holds the label 2")):
        nib.save(nib.Nifti1Image(np.full(mask.shape, value, np.uint8), mask.affine), case.mask)
        result = run(model, tmp_path, tmp_path / "out", "--include-self")
        assert result.exit_code == 1 and message in result.output, result.output


def test_another_kind_of_model_is_one_sentence(pipe, data, tmp_path):
    pipe.save_pretrained(tmp_path / "wavelet")
    result = run(tmp_path / "wavelet", data, tmp_path / "out")
    assert result.exit_code == 1 and "is a WaveletDiffusionPipeline; give an InformedSlicePipeline" in result.output
