"""`voxdiff nearest` on folders of NIfTI files."""

import csv
import inspect
import json

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from voxdiff.cli.main import app
from voxdiff.cli.nearest import nearest
from voxdiff.metrics.nearest import DEFAULT_CANDIDATES

SETTINGS = ("--scales", 3, "--kernel-size", 3, "--device", "cpu")


def write_volumes(folder, volumes):
    folder.mkdir()
    for number, volume in enumerate(volumes):
        nib.save(nib.Nifti1Image(volume.astype(np.float32), np.eye(4)), folder / f"case-{number}.nii.gz")
    return folder


def random_volumes(number, size=16):
    return np.random.default_rng(number).random((number, size, size, size)) * np.linspace(0, 1, size)


@pytest.fixture
def folders(tmp_path):
    """Six real volumes, and two synthetic ones near the real ones 4 and 1."""
    real = random_volumes(6)
    synthetic = np.clip(real[[4, 1]] + 0.02 * random_volumes(2), 0, 1)
    return write_volumes(tmp_path / "synthetic", synthetic), write_volumes(tmp_path / "real", real)


def run(synthetic, real, out, *options):
    arguments = ["nearest", "--synthetic", synthetic, "--real", real, "--out", out, *SETTINGS, *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_table_and_record(tmp_path, folders):
    out = tmp_path / "out"
    result = run(*folders, out, "--candidates", 3, "--top", 2)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((out / "nearest.csv").open()))
    assert [(row["synthetic_file"], row["rank"]) for row in rows] == [
        (f"case-{number}.nii.gz", rank) for number in (0, 1) for rank in ("1", "2")
    ]
    assert [row["real_file"] for row in rows[::2]] == ["case-4.nii.gz", "case-1.nii.gz"]
    similarities = [float(row["ms_ssim"]) for row in rows]
    assert min(similarities[::2]) > 0.95 > max(similarities[1::2])
    record = json.loads((out / "nearest.json").read_text())
    assert record["ms_ssim"] == {"data_range": 1.0, "scales": 3, "kernel_size": 3, "sigma": 1.0}
    assert record["candidates"] == 3 and not record["all_real_volumes_scored"]
    assert [record["sets"][kind]["volumes"] for kind in ("synthetic", "real")] == [2, 6]
    assert "highest" in result.output and "6 real volumes" in result.output.replace("\n", " ")


def test_a_second_run_goes_on_and_zero_means_all(tmp_path, folders, monkeypatch):
    out = tmp_path / "out"
    assert run(*folders, out, "--candidates", 0).exit_code == 0
    table = (out / "nearest.csv").read_bytes()
    assert json.loads((out / "nearest.json").read_text())["all_real_volumes_scored"]

    def refuse(*arguments, **settings):
        raise AssertionError("compared again")

    monkeypatch.setattr("voxdiff.metrics.nearest.SimilarityPyramid", refuse)
    assert run(*folders, out, "--candidates", 0).exit_code == 0
    assert (out / "nearest.csv").read_bytes() == table


def test_the_default_is_the_one_of_the_library():
    assert inspect.signature(nearest).parameters["candidates"].default == DEFAULT_CANDIDATES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--top", 4, "--candidates", 3), "--top is 4; --top takes 1 to the number of candidates"),
        (("--top", 0), "--top is 0"),
        (("--top", 7), "--top is 7 and"),
        (("--candidates", -1), "--candidates is -1"),
        (("--device", "cuda:9"), "which this machine does not offer"),
        (("--scales", 5), "too small for 5 scales"),
        (("--pattern", "*_t2.nii.gz"), "holds no NIfTI volume"),
    ],
)
def test_bad_options_are_one_sentence_and_write_nothing(tmp_path, folders, options, message):
    result = run(*folders, tmp_path / "out", *options)
    assert result.exit_code == 1
    assert message in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_volumes_on_another_scale_are_refused(tmp_path, folders):
    bright = write_volumes(tmp_path / "bright", 255 * random_volumes(2))
    result = run(bright, folders[1], tmp_path / "out")
    assert result.exit_code == 1 and "bring both sets to one scale" in result.output


def test_different_grids_and_an_output_file(tmp_path, folders):
    other = write_volumes(tmp_path / "other", random_volumes(2, 20))
    result = run(other, folders[1], tmp_path / "out")
    assert result.exit_code == 1 and "bring them to one grid" in result.output
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file; give a folder" in run(*folders, file).output
