from dataclasses import replace

import numpy as np
import pytest
import torch
from informed_slice_sets import BASELINE, GEM, VolumeSet, grid_sets, make_set, seam_places, sweep_sets, unit_volume
from resampling_runs import make_cases, make_informed_slice_pipeline

from voxdiff import VolumeProcessor
from voxdiff.pipelines.slice_windows import plan_windows, tile_windows


def test_the_grid_is_the_papers():
    names = [wanted.name for wanted in grid_sets(20, 4, generator=True)]
    assert names == ["own slice", "baseline", "IC", "IG", "baseline + MA", "IC + MA", "IG + MA"]
    assert "IG" not in [wanted.name for wanted in grid_sets(20, 4, generator=False)]


def test_sweeps_hold_the_default_once():
    sets = sweep_sets([10, 20], ["clean", "matched"], [20], default=20, volumes=3)
    found = [(wanted.steps, wanted.noise, wanted.eta) for wanted in sets]
    assert found == [(10, "clean", 0.0), (20, "clean", 0.0), (20, "matched", 0.0), (20, "clean", 1.0)]
    assert len({wanted.folder for wanted in sets}) == len({wanted.name for wanted in sets}) == 4


def test_seams_lie_where_the_window_changes():
    assert seam_places(tile_windows(12, 4)) == [3, 7]
    assert seam_places(plan_windows(12, 6, window=4, overlap=1)) == [2, 5, 9]
    assert seam_places(plan_windows(4, 2, window=4)) == []


def test_a_set_knows_owner_and_donor_and_is_not_made_twice(tmp_path):
    pipe, cases = make_informed_slice_pipeline(), make_cases(3)
    wanted = VolumeSet(name="IC", model=GEM, informed="cross", augmented=True, steps=1, volumes=2)
    made = make_set(wanted, {GEM: pipe}, cases, tmp_path)
    assert [entry["case"] for entry in made] == ["s0", "s1"]
    assert all(entry["donor"] not in (None, entry["case"]) for entry in made)
    volume = unit_volume(made[0]["image"], pipe.volume_processor)
    assert volume.shape == (1, 16, 12, 10) and volume.min() >= 0 and volume.max() <= 1 and np.ptp(volume.numpy()) > 0
    before = made[0]["image"].stat().st_mtime_ns
    assert make_set(wanted, {GEM: pipe}, cases, tmp_path) == made
    assert made[0]["image"].stat().st_mtime_ns == before


def test_the_baseline_has_no_known_slices(tmp_path):
    pipe = make_informed_slice_pipeline(in_channels=4)
    wanted = VolumeSet(name="baseline", model=BASELINE, informed="none", steps=1, volumes=1)
    (made,) = make_set(wanted, {BASELINE: pipe}, make_cases(1), tmp_path)
    assert made["donor"] is None and made["image"].exists()


def test_a_set_can_be_sampled_as_published(tmp_path):
    pipe, cases = make_informed_slice_pipeline(), make_cases(1)
    own = pipe.scheduler
    wanted = VolumeSet(name="own", model=GEM, informed="own", steps=2, eta=1.0, volumes=1)
    (ancestral,) = make_set(wanted, {GEM: pipe}, cases, tmp_path)
    (plain,) = make_set(replace(wanted, eta=0.0), {GEM: pipe}, cases, tmp_path)
    volumes = [unit_volume(made["image"], pipe.volume_processor) for made in (ancestral, plain)]
    assert not torch.allclose(*volumes) and pipe.scheduler is own


def test_too_few_cases(tmp_path):
    wanted = VolumeSet(name="IC", model=GEM, informed="cross", steps=1, volumes=3)
    with pytest.raises(ValueError, match="needs 3 cases, there are 2"):
        make_set(wanted, {}, make_cases(2), tmp_path)


def test_organs_are_rotated_only(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("informed_slice_sets.enhance", lambda *arguments, **options: asked.update(options))
    monkeypatch.setattr("informed_slice_sets.read_set", lambda folder: [])
    pipe = make_informed_slice_pipeline()
    wanted = VolumeSet(name="IC + MA", model=GEM, informed="cross", augmented=True, steps=1, volumes=1)
    make_set(wanted, {GEM: pipe}, make_cases(1), tmp_path)
    assert asked["augmentation"] is None
    pipe.volume_processor = VolumeProcessor(intensity="window", low=-1000, high=1000, unit="HU")
    make_set(wanted, {GEM: pipe}, make_cases(1), tmp_path)
    assert asked["augmentation"] == {"kind": "organs"}
