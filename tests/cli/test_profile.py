import json

import pytest
from typer.testing import CliRunner

from voxdiff.cli.main import app


@pytest.fixture
def model(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def run(*arguments):
    return CliRunner().invoke(app, ["profile", *map(str, arguments)], env={"COLUMNS": "200"})


def test_prints_a_table_and_writes_the_report(model, tmp_path):
    arguments = ("--steps", 2, "--batch-size", 2, "--repeats", 1, "--scheduler", "ddim", "--dtype", "bfloat16")
    result = run(model, *arguments, "--json", tmp_path / "new" / "cost.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "new" / "cost.json").read_text())
    assert report["arguments"] == {"batch_size": 2, "num_inference_steps": 2} and report["dtype"] == "bfloat16"
    assert report["flops"] > 0 and f"{report['parameters']['unet']:,}" in result.output
    assert all(text in result.output for text in ("2 volume(s), 2 steps", "GFLOP", "MiB", "median of 1"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", 0), "num_inference_steps is 0"),
        (("--repeats", 0), "at least 1"),
        (("--dtype", "float8"), "allowed are float32"),
        (("--condition", "t1c=a.nii.gz"), "this model takes none"),
    ],
)
def test_bad_input_is_one_sentence(model, tmp_path, arguments, message):
    result = run(model, *arguments, "--json", tmp_path / "cost.json")
    assert result.exit_code == 1
    assert message in result.output and "Traceback" not in result.output
    assert not (tmp_path / "cost.json").exists()


def test_a_report_that_is_a_folder_is_refused_before_the_model_loads(tmp_path):
    result = run("no-such-model", "--json", tmp_path)
    assert result.exit_code == 1 and "is a folder; give a file" in result.output
