"""The command killed at several places, and run again."""

import json
import os
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

from voxdiff.volume_files import make_image


def write_set(folder, first):
    folder.mkdir()
    axes = np.linspace(-1, 1, 32)
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(axes, axes, axes)))
    for place in range(14):
        random = np.random.default_rng(first + place)
        ball = random.uniform(0.4, 0.8) / (1 + np.exp(30 * (radius - random.uniform(0.5, 0.9))))
        image = make_image(ball.astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]), unit="a.u.")
        nib.save(image, folder / f"{place:02d}.nii.gz")


@pytest.mark.slow
def test_killed_at_any_place_the_next_run_gives_the_report_of_an_unbroken_one(tmp_path):
    for name, first in (("real", 0), ("synthetic", 50), ("train", 100)):
        write_set(tmp_path / name, first)
    arguments = [*("--real", tmp_path / "real", "--synthetic", tmp_path / "synthetic", "--train", tmp_path / "train")]
    arguments += ["--pairs", 6, "--planes", "--name", "balls"]
    command = [sys.executable, "-c", "from voxdiff.cli.main import app; app()", "evaluate", *map(str, arguments)]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    kept = len(list((tmp_path / "whole" / "cache").iterdir()))
    for share in (0.1, 0.5, 0.8, 0.95):
        out = tmp_path / f"killed-{share}"
        kill_once_cached([*command, "--out", str(out)], out / "cache", int(share * kept))
        assert not (out / "report.json").exists()
        began = len(list((out / "cache").iterdir()))
        assert began >= int(share * kept)
        subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
        assert content(out) == content(tmp_path / "whole")


def kill_once_cached(command, cache, number):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while not cache.is_dir() or len(list(cache.iterdir())) < number:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def content(out):
    report = json.loads((out / "report.json").read_text())
    return {key: report[key] for key in ("name", "protocol", "results", "warnings")}
