import json

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from voxdiff.cli.main import app
from voxdiff.volume_files import make_image


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    axes = np.linspace(-1, 1, 16)
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(axes, axes, axes)))
    for name, first in (("real", 0), ("synthetic", 50), ("other", 80)):
        (root / name).mkdir()
        for place in range(14):
            random = np.random.default_rng(first + place)
            ball = 0.8 / (1 + np.exp(30 * (radius - random.uniform(0.5, 0.9))))
            image = make_image(ball.astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]), unit="a.u.")
            nib.save(image, root / name / f"{place:02d}.nii.gz")
    return root


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"})


def test_evaluate_and_compare(folders, tmp_path):
    for name in ("synthetic", "other"):
        result = run(
            *("evaluate", "--real", folders / "real", "--synthetic", folders / name, "--out", tmp_path / name),
            *("--paired", "--pairs", 6),
        )
        assert result.exit_code == 0, result.output
        assert "report.json" in result.output
    content = json.loads((tmp_path / "other" / "report.json").read_text())
    assert content["name"] == "other" and content["protocol"]["num_real"] == 14
    result = run("compare", tmp_path / "synthetic", tmp_path / "other" / "report.json", "--out", tmp_path / "table.md")
    assert result.exit_code == 0, result.output
    assert "| synthetic |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--synthetic", "none"], "does not exist"),
        (["--synthetic", "{real}", "--size", "a"], "--size is 'a'"),
        (["--synthetic", "{real}", "--labels-real", "x"], "one set only"),
        (["--synthetic", "{real}", "--extractor", "inception"], "no extractor"),
    ],
)
def test_errors_are_one_sentence(folders, tmp_path, arguments, words):
    filled = [argument.replace("{real}", str(folders / "real")) for argument in arguments]
    result = run("evaluate", "--real", folders / "real", "--out", tmp_path / "out", *filled)
    assert result.exit_code == 1 and words in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out" / "report.json").exists()


def test_compare_refuses_other_protocols(folders, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        run(
            *("evaluate", "--real", folders / "real", "--synthetic", folders / "other", "--out", tmp_path / name),
            *("--seed", seed, "--pairs", 6),
        )
    result = run("compare", tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 1 and "seed is 0 and 1" in result.output
