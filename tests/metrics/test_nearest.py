"""Nearest real volumes against all pairs one by one; the search killed and continued."""

import numpy as np
import pytest
import torch

from voxdiff.metrics.nearest import nearest_by_ms_ssim
from voxdiff.metrics.similarity import ms_ssim

SETTINGS = {"scales": 3, "kernel_size": 3}


def smooth_volumes(number, size=16):
    """Random volumes in [0, 1] with structure at every scale."""
    coarse = torch.nn.functional.interpolate(torch.rand(number, 1, 4, 4, 4), size=size, mode="trilinear")
    return (coarse + 0.1 * torch.randn(number, 1, size, size, size)).clamp(0, 1)


class Folder:
    """Volumes that count how often each is read."""

    def __init__(self, volumes, fingerprint=None):
        self.volumes, self.read = volumes, []
        if fingerprint:
            self.fingerprint = fingerprint

    def __len__(self):
        return len(self.volumes)

    def __getitem__(self, place):
        self.read.append(place)
        return self.volumes[place]


class KilledError(Exception):
    """Stands for the process being killed."""


def killed_after(number, stage):
    """A progress callback that raises once so many blocks of a stage are finished."""
    finished = []

    def progress(reached, done, total):
        finished.append(reached)
        if finished.count(stage) == number:
            raise KilledError

    return progress


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("voxdiff.metrics.nearest._blocks", lambda number, size=2: _cut(number, size))


def _cut(number, size):
    return [range(first, min(first + size, number)) for first in range(0, number, size)]


def assert_same(found, expected):
    assert torch.equal(found.candidates, expected.candidates)
    assert torch.equal(found.candidate_similarities, expected.candidate_similarities)


def test_all_candidates_equal_brute_force():
    synthetic, real = smooth_volumes(4), smooth_volumes(5)
    expected = torch.stack([ms_ssim(volume.expand(5, -1, -1, -1, -1), real, **SETTINGS) for volume in synthetic])
    found = nearest_by_ms_ssim(synthetic, real, candidates=None, **SETTINGS)
    assert torch.equal(found.index, expected.argmax(dim=1))
    torch.testing.assert_close(found.similarity, expected.max(dim=1).values, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found.candidate_similarities, expected.sort(dim=1, descending=True).values, atol=1e-5, rtol=0
    )


def test_the_chosen_candidates_are_scored_in_full_and_hold_the_nearest():
    real = smooth_volumes(40)
    synthetic = (real[[7, 31, 12]] + 0.1 * torch.randn(3, 1, 16, 16, 16)).clamp(0, 1)
    every = nearest_by_ms_ssim(synthetic, real, candidates=None, **SETTINGS)
    found = nearest_by_ms_ssim(synthetic, real, candidates=4, **SETTINGS)
    assert found.index.tolist() == every.index.tolist() == [7, 31, 12]
    assert found.candidates.shape == found.candidate_similarities.shape == (3, 4)
    for row in range(3):
        scores = dict(zip(every.candidates[row].tolist(), every.candidate_similarities[row].tolist(), strict=True))
        expected = [scores[place] for place in found.candidates[row].tolist()]
        assert found.candidate_similarities[row].tolist() == pytest.approx(expected, abs=1e-6)
        assert expected == sorted(expected, reverse=True)


def test_of_equal_real_volumes_the_first_is_named():
    real = smooth_volumes(3)[[0, 1, 1, 2, 1]]
    for candidates in (None, 2):
        found = nearest_by_ms_ssim(real[[2]], real, candidates=candidates, **SETTINGS)
        assert found.index.tolist() == [1] and found.similarity.item() == pytest.approx(1, abs=1e-6)


def test_little_memory_gives_the_same():
    synthetic, real = smooth_volumes(5), smooth_volumes(6)
    expected = nearest_by_ms_ssim(synthetic, real, candidates=3, **SETTINGS)
    volumes = Folder(real)
    room_for_two = 2.5 * 16**3 * 4 * 3 * 8 / 7 / 2**30
    found = nearest_by_ms_ssim(synthetic, volumes, candidates=3, memory_gib=room_for_two, **SETTINGS)
    torch.testing.assert_close(found.candidate_similarities, expected.candidate_similarities, atol=1e-6, rtol=0)
    assert max(volumes.read.count(place) for place in range(1, 6)) <= 1 + 3  # choosing, and three fillings


@pytest.mark.parametrize(
    ("stage", "blocks"), [("reading", 1), ("reading", 5), ("choosing", 2), ("scoring", 1), ("scoring", 2)]
)
def test_goes_on_where_it_was_killed(tmp_path, small_blocks, stage, blocks):
    synthetic, real = smooth_volumes(6), smooth_volumes(8)
    expected = nearest_by_ms_ssim(synthetic, real, candidates=3, **SETTINGS)
    first, second = Folder(real, "real"), Folder(real, "real")
    arguments = {"candidates": 3, "cache_dir": tmp_path, **SETTINGS}
    with pytest.raises(KilledError):
        nearest_by_ms_ssim(synthetic, first, progress=killed_after(blocks, stage), **arguments)
    assert_same(nearest_by_ms_ssim(synthetic, second, **arguments), expected)
    assert len(first.read) + len(second.read) <= 2 + 8 + 8  # grid, choosing, scoring: no finished block again

    third = Folder(real, "real")
    assert_same(nearest_by_ms_ssim(synthetic, third, **arguments), expected)
    assert third.read == [0]


def test_killed_while_saving_keeps_the_previous_block(tmp_path, small_blocks, monkeypatch):
    synthetic, real = smooth_volumes(3), smooth_volumes(6)
    save, saved = np.save, []

    def torn(path, values):
        saved.append(path)
        save(path, values)
        if len(saved) == 2:
            path.write_bytes(path.read_bytes()[:-7])
            raise KilledError

    monkeypatch.setattr(np, "save", torn)
    arguments = {"candidates": None, **SETTINGS}
    with pytest.raises(KilledError):
        nearest_by_ms_ssim(synthetic, real, cache_dir=tmp_path, **arguments)
    assert len(saved) == 2
    assert_same(
        nearest_by_ms_ssim(synthetic, real, cache_dir=tmp_path, **arguments),
        nearest_by_ms_ssim(synthetic, real, **arguments),
    )


def test_a_changed_set_or_setting_is_searched_anew(tmp_path):
    synthetic, real = smooth_volumes(2), smooth_volumes(4)
    arguments = {"candidates": 2, "cache_dir": tmp_path}
    nearest_by_ms_ssim(synthetic, real, **arguments, **SETTINGS)
    changed = real.clone()
    changed[3] = synthetic[1]
    found = nearest_by_ms_ssim(synthetic, changed, **arguments, **SETTINGS)
    assert found.index[1] == 3 and found.similarity[1].item() == pytest.approx(1, abs=1e-6)
    wider = nearest_by_ms_ssim(synthetic, changed, **arguments, **{**SETTINGS, "sigma": 2.0})
    assert not torch.equal(wider.candidate_similarities, found.candidate_similarities)
    nearest_by_ms_ssim(Folder(synthetic, "a"), Folder(real, "b"), **arguments, **SETTINGS)
    nearest_by_ms_ssim(Folder(synthetic, "a"), Folder(real, "c"), **arguments, **SETTINGS)
    assert len(list(tmp_path.iterdir())) == 5


def test_progress_of_every_stage_ends_complete(small_blocks):
    reported = []
    nearest_by_ms_ssim(
        smooth_volumes(3), smooth_volumes(5), candidates=2, progress=lambda *state: reported.append(state), **SETTINGS
    )
    last = {stage: (done, total) for stage, done, total in reported}
    assert last == {"reading": (8, 8), "choosing": (3, 3), "scoring": (6, 6)}


@pytest.mark.parametrize(
    ("synthetic", "real", "settings", "message"),
    [
        (torch.rand(0, 1, 16, 16, 16), torch.rand(2, 1, 16, 16, 16), {}, "The synthetic set is empty"),
        (torch.rand(1, 1, 16, 16, 16), [], {}, "The real set is empty"),
        (torch.rand(1, 1, 16, 16, 16), torch.rand(2, 1, 16, 16, 24), {}, "16 x 16 x 16 voxels and the real ones 16 x"),
        (torch.rand(1, 2, 16, 16, 16), torch.rand(2, 2, 16, 16, 16), {}, r"shape \(2, 16, 16, 16\); allowed is \(1"),
        (torch.rand(1, 1, 8, 8, 8), torch.rand(2, 1, 8, 8, 8), {}, "8 x 8 x 8 is too small for 3 scales"),
        (torch.rand(1, 1, 16, 16, 16), torch.rand(2, 1, 16, 16, 16), {"candidates": 0}, "candidates is 0"),
        (torch.rand(1, 1, 16, 16, 16), torch.rand(2, 1, 16, 16, 16), {"workers": 0}, "workers is 0"),
        (torch.rand(1, 1, 16, 16, 16), [torch.rand(1, 16, 16, 16), torch.rand(1, 9, 9, 9)], {}, "real volume 1 has"),
        (
            torch.full((1, 1, 16, 16, 16), torch.nan),
            torch.rand(2, 1, 16, 16, 16),
            {},
            "synthetic volume 0 goes from nan",
        ),
        (
            torch.rand(1, 1, 16, 16, 16),
            100 * torch.rand(2, 1, 16, 16, 16),
            {},
            "real volume 0 goes .* data range is 1;",
        ),
    ],
)
def test_bad_input_is_one_sentence(synthetic, real, settings, message):
    with pytest.raises(ValueError, match=message):
        nearest_by_ms_ssim(synthetic, real, **{"candidates": None, **SETTINGS, **settings})
