"""The whole benchmark, with a network that has learned nothing."""

import json

import bench_slice_conditioned
import pytest
from slice_pipelines import make_slice_pipeline, make_slice_processor


@pytest.mark.slow
def test_every_set_and_factor_gets_its_row_and_nothing_is_made_twice(tmp_path, monkeypatch):
    processor = make_slice_processor(
        size=(32, 32, 32), spacing=(6.5, 6.5, 6.5), intensity="window", low=0, high=1, unit="a.u."
    )
    make_slice_pipeline(processor=processor, max_slices=20).save_pretrained(tmp_path / "model")
    options = ["--model", tmp_path / "model", "--also", f"the same={tmp_path / 'model'}", "--runs", tmp_path / "runs"]
    options += ["--cache", tmp_path / "cache", "--volumes", 4, "--steps", 1, "--long-steps", 2, "--long-volumes", 4]
    options += ["--cases", 2, "--factors", 4, "--out", tmp_path, "--name", "found"]

    def measure():
        monkeypatch.setattr("sys.argv", ["bench_slice_conditioned.py", *map(str, options)])
        bench_slice_conditioned.main()
        made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
        found = json.loads((tmp_path / "found.json").read_text())
        return made, found["sets"], found["interpolation"]

    made, sets, missing = first = measure()
    assert len(sets) == 8 and sets["autoregressive, 1 steps"]["calls"] == 11
    assert set(missing["4"]["methods"]) == {"linear", "cubic", "one sample", "mean of samples"}
    table = (tmp_path / "found.md").read_text()
    assert all(f"| {name} " in table for name in sets) and "linear, 1 of 4 kept" in table
    assert measure() == first and len(made) == (5 + 1) * 4 * 2 + 2
