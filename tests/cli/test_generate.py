import json

import nibabel as nib
import numpy as np
import pytest
from informed_slice_pipelines import make_informed_pipeline
from patch_volume_components import make_guided_pipeline
from PIL import Image
from typer.testing import CliRunner

from voxdiff.cli.main import app


@pytest.fixture
def model(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def run(*arguments):
    return CliRunner().invoke(app, ["generate", *map(str, arguments)], env={"COLUMNS": "200"})


def test_writes_volumes_records_and_pictures(model, tmp_path):
    out = tmp_path / "out"
    result = run(model, "--out", out, "--num-volumes", 3, "--steps", 2, "--seed", 5, "--batch-size", 2)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == [
        f"volume-000{index}.{suffix}" for index in range(3) for suffix in ("json", "nii.gz", "png")
    ]
    assert [json.loads((out / f"volume-000{i}.json").read_text())["seed"] for i in range(3)] == [5, 6, 7]
    assert nib.load(out / "volume-0002.nii.gz").shape == (16, 16, 8)
    assert np.asarray(Image.open(out / "volume-0000.png")).std() > 0
    assert "volume-0001.png" in result.output


def test_a_volume_depends_on_its_own_seed_only(model, tmp_path):
    run(model, "--out", tmp_path / "a", "--num-volumes", 2, "--steps", 2, "--batch-size", 2)
    run(model, "--out", tmp_path / "b", "--num-volumes", 1, "--steps", 2, "--seed", 1)
    first, second = (nib.load(tmp_path / name).get_fdata() for name in ("a/volume-0001.nii.gz", "b/volume-0000.nii.gz"))
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_scheduler_and_dtype_are_used(model, tmp_path):
    result = run(model, "--out", tmp_path / "out", "--steps", 2, "--scheduler", "ddim", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "volume-0000.json").read_text())
    assert (record["scheduler"]["class"], record["dtype"]) == ("DDIMScheduler", "bfloat16")


def test_conditions_by_path(translation_pipe, tmp_path):
    translation_pipe.save_pretrained(tmp_path / "model")
    for name in ("t1c", "t2w"):
        image = nib.Nifti1Image(np.random.default_rng(0).random((16, 16, 8), dtype=np.float32), np.diag([2, 2, 3, 1]))
        nib.save(image, tmp_path / f"{name}.nii.gz")
    pairs = [text for name in ("t1c", "t2w") for text in ("--condition", f"{name}={tmp_path / name}.nii.gz")]
    result = run(tmp_path / "model", "--out", tmp_path / "out", "--steps", 1, *pairs)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "volume-0000.json").read_text())
    assert record["conditions"] == {"t1c": f"{tmp_path}/t1c.nii.gz", "t2w": f"{tmp_path}/t2w.nii.gz"}


def test_class_scalars_grid_and_guidance_are_used(tmp_path):
    make_guided_pipeline().save_pretrained(tmp_path / "model")
    arguments = (
        "--scalar",
        "age=40",
        "--scalar",
        "volume=2.5",
        "--size",
        8,
        16,
        8,
        "--guidance-scale",
        2,
        "--steps",
        1,
    )
    for label in ("chest", "1"):
        result = run(tmp_path / "model", "--out", tmp_path / label, "--class-label", label, *arguments)
        assert result.exit_code == 0, result.output
        assert nib.load(tmp_path / label / "volume-0000.nii.gz").shape == (8, 16, 8)
        conditions = json.loads((tmp_path / label / "volume-0000.json").read_text())["conditions"]
        assert (conditions["class"], conditions["guidance_scale"]) == ("chest", 2.0)
        assert conditions["scalars"] == {"age": 40.0, "volume": 2.5}


def test_another_grid_of_a_wavelet_model(model, tmp_path):
    result = run(model, "--out", tmp_path / "out", "--steps", 1, "--size", 8, 16, 12)
    assert result.exit_code == 0, result.output
    assert nib.load(tmp_path / "out" / "volume-0000.nii.gz").shape == (8, 16, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class-label", "brain"), "WaveletDiffusionPipeline takes no --class-label; leave that out"),
        (("--scalar", "age=3", "--guidance-scale", 2), "takes no --scalar, --guidance-scale; leave"),
        (("--scalar", "age=old"), "write NAME=VALUE"),
        (("--scalar", "age"), "write NAME=VALUE"),
        (("--size", 10, 16, 8), "divisible by 4"),
        (("--steps", 0), "num_inference_steps is 0"),
        (("--num-volumes", 0), "at least 1"),
        (("--scheduler", "lcm"), "'lcm' is not supported; choose one of ddpm"),
        (("--dtype", "float8"), "allowed are float32, bfloat16, float16"),
        (("--condition", "t1c"), "write NAME=PATH"),
        (("--condition", "t1c=scan.nii.gz"), "this model takes none"),
        (("--device", "tpu9"), "does not offer"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(model, tmp_path, arguments, message):
    result = run(model, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 1
    assert message in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file_is_refused_before_sampling(model, tmp_path):
    (tmp_path / "out").write_text("kept")
    result = run(model, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "is a file; give a folder" in result.output
    assert (tmp_path / "out").read_text() == "kept"


@pytest.mark.parametrize("command", ["generate", "profile"])
def test_a_model_that_needs_masks_names_its_own_commands(command, tmp_path):
    make_informed_pipeline().save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(app, [command, str(tmp_path / "model")], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "InformedSlicePipeline makes volumes of masks" in result.stderr and "voxdiff enhance" in result.stderr


def test_an_unknown_model_is_one_sentence(tmp_path):
    result = run("no-such-model", "--out", tmp_path / "out")
    assert result.exit_code == 1 and "give a pipeline folder, a Hub repository" in result.output


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"pickle")
    result = run(tmp_path / "model.pt", "--out", tmp_path / "out")
    assert result.exit_code == 1 and "voxdiff convert" in result.output


def test_help_names_every_command():
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    commands = (
        "generate",
        "cohort",
        "evaluate",
        "compare",
        "nearest",
        "utility",
        "profile",
        "enhance",
        "harmonize",
        "interpolate",
        "counterfactual",
        "convert",
        "export-nnunet",
    )
    assert all(name in result.output for name in commands)
