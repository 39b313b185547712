"""The wheel alone, outside the checkout, has all it needs to generate."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
GENERATE = """
import sys, voxdiff
assert voxdiff.__file__.startswith(sys.argv[1]), voxdiff.__file__
from voxdiff.cli.main import app
from voxdiff.metrics import load_extractor
assert [load_extractor(name).num_features for name in ("cohort-2d", "cohort-3d")] == [208, 192]
app(["generate", "--steps", "1", "--out", sys.argv[2]])
"""


@pytest.mark.slow
def test_the_installed_wheel_generates(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, CHECKOUT], check=True)
    [wheel] = tmp_path.glob("voxdiff-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", GENERATE, str(tmp_path / "site"), str(tmp_path / "out")]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["volume-0000.json", "volume-0000.nii.gz", "volume-0000.png"]
