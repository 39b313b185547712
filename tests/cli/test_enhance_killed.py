"""The command killed at several places, and run again."""

import os
import signal
import subprocess
import sys
import time

import pytest
from resampling_runs import contents, make_case, make_informed_slice_pipeline


@pytest.mark.slow
def test_killed_at_any_place_the_next_run_gives_the_files_of_an_unbroken_one(tmp_path):
    make_informed_slice_pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for place in range(6):
        make_case(f"s{place}", seed=place, folder=tmp_path / "data")
    command = [sys.executable, "-c", "from voxdiff.cli.main import app; app()", "enhance"]
    command += [str(tmp_path / "model"), str(tmp_path / "data")]
    options = ["--variants", "3", "--augment-masks", "--steps", "8", "--batch-size", "2", "--filter", "outlier=1000"]
    options += ["--nnunet", "raw", "--nnunet-id", "12", "--nnunet-label", "tumour=1", "--nnunet-background", "4"]

    def folder(name):
        (tmp_path / name).mkdir()
        return tmp_path / name

    whole = folder("whole")
    subprocess.run([*command, "out", *options], check=True, capture_output=True, cwd=whole)
    wanted = contents(whole)
    for files in (1, 9, 30, len(list((whole / "out").iterdir())) - 1):
        broken = folder(f"killed-{files}")
        kill_once_written([*command, "out", *options], broken, files)
        assert contents(broken) != wanted
        subprocess.run([*command, "out", *options], check=True, capture_output=True, cwd=broken)
        assert contents(broken) == wanted


def kill_once_written(command, folder, number):
    out = folder / "out"
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd=folder
    )
    while not out.is_dir() or len(list(out.iterdir())) < number:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
