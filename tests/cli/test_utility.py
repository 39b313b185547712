import csv
import json

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from voxdiff.cli.main import app


def write_folder(folder, count, first, spacing=2.0, scale=1.0):
    """Bright boxes in noise, their label maps and the class of their size, as a `niftifolder` data set."""
    folder.mkdir(parents=True)
    rows = []
    for seed in range(first, first + count):
        random, edge = np.random.default_rng(seed), 3 + 3 * (seed % 2)
        image, label = random.random((8, 8, 8), dtype=np.float32) * 100, np.zeros((8, 8, 8), np.uint8)
        image[1 : 1 + edge, 1 : 1 + edge, 1 : 1 + edge] += 300
        image *= scale
        label[1 : 1 + edge, 1 : 1 + edge, 1 : 1 + edge] = 1
        for name, values in (("t1", image), ("mask", label)):
            nib.save(nib.Nifti1Image(values, np.diag([spacing] * 3 + [1])), folder / f"{seed}_{name}.nii.gz")
        rows.append(
            {
                "t1_file_name": f"{seed}_t1.nii.gz",
                "mask_file_name": f"{seed}_mask.nii.gz",
                "kind": "big" * (seed % 2) or "a",
            }
        )
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("utility")
    for name, first in (("real", 0), ("synthetic", 10), ("test", 20)):
        write_folder(root / name, 4, first)
    return root


def run(folders, out, *arguments, label="mask", test="test"):
    given = ["--real", folders / "real", "--synthetic", folders / "synthetic", "--test", folders / test]
    given += ["--image", "t1", "--label", label, "--out", out, "--folds", 1, "--seeds", "0", "--steps", 2, *arguments]
    return CliRunner().invoke(app, ["utility", *map(str, given)], env={"COLUMNS": "200"})


def test_segmentation_reports_and_goes_on_where_it_was(folders, tmp_path):
    result = run(folders, tmp_path, "--region", "lesion=1", "--settings", "real,50R+100S")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "utility.json").read_text())
    assert report["protocol"]["regions"] == {"lesion": [1]} and report["protocol"]["spacing_mm"] == [2, 2, 2]
    assert [(run["num_real"], run["num_synthetic"]) for run in report["runs"]] == [(4, 0), (2, 4)]
    assert "| 50R+100S | 2 | 4 |" in (tmp_path / "utility.md").read_text()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(kept) == 2
    again = run(folders, tmp_path, "--region", "lesion=1", "--settings", "real,50R+100S")
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == kept
    assert json.loads((tmp_path / "utility.json").read_text()) == report


def test_classification_reads_the_class_from_the_metadata(folders, tmp_path):
    result = run(folders, tmp_path, "--task", "classification", label="kind")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "utility.json").read_text())
    assert report["protocol"]["num_classes"] == 2
    assert set(report["summary"]) == {"real", "synthetic", "real+synthetic"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "detection"), "allowed are segmentation, classification"),
        (("--settings", "fake"), "write real, synthetic"),
        (("--seeds", "a"), "whole numbers separated by commas"),
        (("--patch-size", "8,8"), "x,y,z or one number"),
        (("--patch-size", "9"), "multiples of 8 from 16"),
        (("--region", "WT"), "NAME=1,2,3"),
        (("--real", "no-such-folder"), "no-such-folder does not exist"),
        (("--task", "classification", "--region", "a=1"), "belongs to segmentation"),
        (("--task", "classification", "--label", "age"), "no 'age' in a metadata.csv"),
    ],
)
def test_bad_input_is_one_sentence_before_any_training(folders, tmp_path, arguments, message):
    result = run(folders, tmp_path / "out", *arguments)
    assert result.exit_code == 1
    assert message in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out" / "runs").exists()


def test_label_maps_beside_their_images_are_refused(folders, tmp_path):
    write_folder(tmp_path / "test", 2, 0)
    moved = tmp_path / "test" / "1_mask.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.diag([2, 2, 3, 1])), moved)
    result = run(folders, tmp_path / "out", test=tmp_path / "test")
    assert result.exit_code == 1 and "mm away from its image" in result.output


def test_images_on_another_scale_are_refused(tmp_path):
    for name, first, scale in (("real", 0, 1 / 400), ("synthetic", 10, 1.0), ("test", 20, 1 / 400)):
        write_folder(tmp_path / name, 2, first, scale=scale)
    result = run(tmp_path, tmp_path / "out")
    assert result.exit_code == 1 and "bring both sets to one scale" in result.output
