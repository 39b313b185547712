import math
from collections import Counter

import pytest
import torch

from voxdiff.pipelines.slice_stages import plan_stages
from voxdiff.training.batches import SampleNoise
from voxdiff.training.slice_index_sampler import (
    SliceIndexSampler,
    draw_comb,
    draw_slice_sets,
    draw_spaced_slices,
    place_comb,
)

ALMOST_ONE = 1 - 2**-53


def uniforms(seed=0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.rand(1024, generator=generator, dtype=torch.float64).tolist()


def noise_of(step, places):
    return SampleNoise(0, {"step": [step] * len(places), "place": places})


def number_of(count, most=20):
    """The draw that chooses this number of slices."""
    return (count - 0.5) / most


def is_run(slices):
    return max(slices) - min(slices) == len(slices) - 1


def spans(slices, depth):
    """Whether no further slice of this spacing would fit before or after."""
    return (max(slices) - min(slices)) * len(slices) / (len(slices) - 1) > depth - 1


def test_the_three_draws_are_number_spacing_and_place():
    def draw(spacing, place):
        return sorted(draw_spaced_slices(64, 20, iter([number_of(5), spacing, place])))

    assert draw(0.0, 0.0) == [0, 1, 2, 3, 4]
    assert draw(0.0, 0.999) == [59, 60, 61, 62, 63]
    assert draw(1.0, 0.5) == [0, 16, 32, 47, 63]
    spacing = math.exp(0.5 * math.log(64 / 4.001))
    assert draw(0.5, 0.5) == [int(0.5 * (64 - 4 * spacing) + place * spacing) for place in range(5)]


def test_numbers_are_uniform_and_spacings_log_uniform():
    source = uniforms()
    numbers = Counter(len(draw_spaced_slices(64, 20, source)) for _ in range(8000))
    assert set(numbers) == set(range(1, 21))
    assert all(abs(count - 400) < 5 * math.sqrt(400) for count in numbers.values())
    depth, number = 2000, 11
    drawn = []
    for _ in range(4000):
        slices = draw_spaced_slices(depth, 20, iter([number_of(number), next(source), next(source)]))
        drawn.append((max(slices) - min(slices)) / (number - 1))
    shares = torch.tensor(drawn).log() / math.log(depth / (number - 0.999))
    distance = (shares.sort().values - torch.linspace(0, 1, len(drawn))).abs().max()
    assert distance < 0.04  # Kolmogorov-Smirnov: 0.026 at 1 %, and 0.02 for whole slices


@pytest.mark.parametrize("depth", [1, 2, 7, 21, 64, 127])
@pytest.mark.parametrize("place", [0.0, 0.7, 0.999, ALMOST_ONE])
def test_extreme_draws_stay_in_the_volume(depth, place):
    for number in range(1, min(20, depth) + 1):
        for spacing in (0.0, 0.3, ALMOST_ONE):
            draws = iter([number_of(number, min(20, depth)), spacing, place])
            slices = draw_spaced_slices(depth, 20, draws)
            assert len(slices) == number or place == ALMOST_ONE
            assert 0 <= min(slices) <= max(slices) < depth


def test_every_slice_is_target_and_observed_in_dense_runs_and_in_combs():
    source = uniforms()
    layouts = [draw_slice_sets(64, 20, source) for _ in range(4000)]
    for slices in zip(*layouts, strict=True):
        assert set().union(*slices) == set(range(64))
    alone = [targets for targets, observed in layouts if not observed and len(targets) > 5]
    assert sum(map(is_run, alone)) > 20
    assert sum(spans(targets, 64) for targets in alone) > 20
    assert sum(not observed for _, observed in layouts) > 400
    assert sum(bool(observed) for _, observed in layouts) > 400


def test_sets_are_apart_and_not_too_many():
    source = uniforms()
    for _ in range(1000):
        targets, observed = draw_slice_sets(24, 9, source)
        assert targets
        assert not targets & observed
        assert len(targets) + len(observed) <= 9


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_a_volume_of_few_slices_is_used_whole(depth):
    targets, observed = draw_slice_sets(depth, 20, uniforms())
    assert targets | observed == set(range(depth))


def test_drawing_stops_at_the_first_draw_that_does_not_fit():
    """Three targets of six; three more of the same are none, two others fit, and then three do not."""
    run = [number_of(3, 6), 0.0]
    draws = [*run, 0.0, 0.1, *run, 0.0, 0.6, number_of(2, 6), 0.0, 0.99, 0.1, *run, 0.5]
    assert draw_slice_sets(40, 6, iter(draws)) == ({0, 1, 2}, {38, 39})


def test_a_batch_has_one_number_of_targets_and_one_of_observed_slices():
    sampler = SliceIndexSampler(max_slices=6, seed=3)
    numbers = set()
    for step in range(40):
        targets, observed = sampler.draw(24, step, noise_of(step, [0, 1, 2, 3]))
        assert len(targets) == len(observed) == 4
        assert len({tuple(row) for row in targets.tolist()}) > 1
        for row in torch.cat([targets, observed], dim=1).tolist():
            assert len(set(row)) == len(row) <= 6
        assert torch.equal(targets, targets.sort().values)
        assert torch.equal(observed, observed.sort().values)
        numbers.add((targets.shape[1], observed.shape[1]))
    assert len(numbers) > 10


def test_a_sample_is_the_same_in_any_batch_and_another_at_the_next_step():
    sampler = SliceIndexSampler(max_slices=8, seed=3)
    together, alone = (sampler.draw(32, 5, noise_of(5, places)) for places in ([0, 1, 2], [1]))
    for one, several in zip(alone, together, strict=True):
        assert torch.equal(one[0], several[1])
    later = sampler.draw(32, 6, noise_of(6, [1]))
    assert any(one.shape != other.shape or not torch.equal(one, other) for one, other in zip(alone, later, strict=True))
    other_seed = SliceIndexSampler(max_slices=8, seed=4)
    shapes = {tuple(part.shape for part in chosen.draw(32, 5, noise_of(5, [1]))) for chosen in (sampler, other_seed)}
    assert len(shapes) == 2


def test_sharing_the_numbers_changes_nothing_for_a_single_volume():
    source, sampler, number = uniforms(), SliceIndexSampler(max_slices=3), 3000
    free, shared = Counter(), Counter()
    for step in range(number):
        free[tuple(map(frozenset, draw_slice_sets(5, 3, source)))] += 1
        drawn = sampler.draw(5, step, noise_of(step, [0]))
        shared[tuple(frozenset(part[0].tolist()) for part in drawn)] += 1
    for layout in free | shared:
        spread = math.sqrt(free[layout] + shared[layout])
        assert abs(free[layout] - shared[layout]) < 4.5 * spread, layout


@pytest.mark.parametrize("share", [0.0, 0.8, 1.0])
def test_the_share_of_steps_that_observe_slices_can_be_set(share):
    sampler = SliceIndexSampler(max_slices=6, observed_share=share)
    drawn = [sampler.draw(16, step, noise_of(step, [0])) for step in range(300)]
    found = sum(observed.numel() > 0 for _, observed in drawn) / len(drawn)
    assert abs(found - share) < 3 * math.sqrt(share * (1 - share) / len(drawn)) + 1e-9
    assert all(targets.numel() and targets.numel() + observed.numel() <= 6 for targets, observed in drawn)


def test_a_volume_of_one_slice_observes_none():
    targets, observed = SliceIndexSampler(observed_share=1.0).draw(1, 0, noise_of(0, [0]))
    assert (targets.tolist(), observed.numel()) == ([[0]], 0)


@pytest.mark.parametrize(("depth", "most"), [(64, 20), (5, 20), (3, 20), (64, 3)])
def test_gaps_lie_between_the_teeth_of_a_comb(depth, most):
    sampler = SliceIndexSampler(max_slices=most, gap_share=1.0)
    shapes, places = set(), set()
    for step in range(300):
        targets, observed = sampler.draw(depth, step, noise_of(step, [0, 1]))
        for missing, teeth in zip(targets.tolist(), observed.tolist(), strict=True):
            spacing = teeth[1] - teeth[0]
            assert teeth == list(range(teeth[0], teeth[-1] + 1, spacing)) and spacing > 1
            assert teeth[0] >= 0 and teeth[-1] < depth and len(missing) + len(teeth) <= most
            within = range(missing[0], missing[-1] + 1)
            assert missing == [place for place in within if place not in teeth]
            assert {missing[0] - 1, missing[-1] + 1} <= set(teeth)
            shapes.add((spacing, len(missing), len(teeth)))
            places |= {*teeth, *missing}
    assert places == set(range(depth))
    widest = min(depth, most) - 1
    assert {spacing for spacing, _, _ in shapes} == set(range(2, widest + 1)) and (widest, widest - 1, 2) in shapes
    further = {teeth - 1 - targets // (spacing - 1) for spacing, targets, teeth in shapes}
    assert 0 in further and (most < 20 or depth < 20 or max(further) > 10)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_stages_of_z_super_resolution_are_among_the_combs(factor):
    """Up to a shift: what is asked of a network that was trained with 20 of 64 slices."""
    source, drawn = uniforms(), set()
    for _ in range(20000):
        targets, teeth = place_comb(64, *draw_comb(64, 20, source), source)
        drawn.add((tuple(place - teeth[0] for place in targets), tuple(place - teeth[0] for place in teeth)))
    known = range(0, 63 // factor * factor + 1, factor)
    for stage in plan_stages(known[-1] + 1, known=known, stage_size=10, context_size=10, max_slices=20):
        teeth = sorted(stage.context)
        shifted = [tuple(place - teeth[0] for place in slices) for slices in (sorted(stage.targets), teeth)]
        assert tuple(shifted) in drawn, stage


def test_spacings_of_combs_are_log_uniform():
    source = uniforms()
    spacings = Counter(draw_comb(64, 20, source)[0] for _ in range(8000))
    for spacing in (2, 5, 19):
        expected = 8000 * math.log((spacing + 1) / spacing) / math.log(10)
        assert abs(spacings[spacing] - expected) < 5 * math.sqrt(expected)


def test_the_share_of_steps_that_fill_gaps_can_be_set():
    sampler = SliceIndexSampler(max_slices=6, gap_share=0.4, observed_share=0.0)
    found = sum(sampler.draw(16, step, noise_of(step, [0]))[1].numel() > 0 for step in range(300)) / 300
    assert abs(found - 0.4) < 3 * math.sqrt(0.24 / 300)
    targets, observed = SliceIndexSampler(gap_share=1.0).draw(2, 0, noise_of(0, [0]))
    assert targets.numel() and targets.numel() + observed.numel() <= 2


def test_the_share_of_steps_that_learn_the_first_stage_can_be_set():
    sampler = SliceIndexSampler(max_slices=6, gap_share=0.3, comb_share=0.4, observed_share=1.0)
    first = plan_stages(16, stage_size=3, context_size=3, max_slices=6)[0].targets
    found = [sampler.draw(16, step, noise_of(step, [0, 1])) for step in range(300)]
    combs = [targets.tolist() for targets, observed in found if not observed.numel()]
    assert combs == [[list(first)] * 2] * len(combs)
    assert abs(len(combs) / 300 - 0.4) < 3 * math.sqrt(0.24 / 300)
    targets, observed = SliceIndexSampler(comb_share=1.0).draw(2, 0, noise_of(0, [0]))
    assert targets.tolist() == [[0, 1]] and observed.shape == (1, 0)


def test_the_shares_are_of_one_whole():
    with pytest.raises(ValueError, match=r"gap_share is 0\.7 and comb_share 0\.5, more than 1 together; give less"):
        SliceIndexSampler(gap_share=0.7, comb_share=0.5)


def test_a_gap_needs_three_slices():
    with pytest.raises(ValueError, match=r"gap_share is 0\.5 with 2 slices a step; a gap needs 3"):
        SliceIndexSampler(max_slices=2, gap_share=0.5)
