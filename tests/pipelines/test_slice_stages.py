import itertools
import random
from itertools import pairwise

import pytest

from voxdiff.pipelines.slice_stages import SCHEMES, SliceStage, check_slices, find_gaps, plan_stages


def drawn_arguments(rng, depth):
    """Sizes, scheme and known slices at random: any set, or every k-th slice."""
    most = rng.randint(2, 24)
    stage_size = rng.randint(1, most - 1)
    combs = list(range(rng.randrange(depth), depth, rng.randint(1, 8)))
    return {
        "scheme": rng.choice(SCHEMES),
        "known": rng.choice([[], combs, rng.sample(range(depth), rng.randint(0, depth))]),
        "stage_size": stage_size,
        "context_size": rng.randint(1, most - stage_size),
        "first_stage_size": rng.choice([None, rng.randint(1, most)]),
        "max_slices": most,
    }


def check_plan(stages, depth, *, scheme, known, context_size, max_slices, **_):
    """Every slice once, from what is there by then, and never more slots than the network has."""
    there = set(known) or ({0} if scheme == "anchored" and depth > 1 else set())
    made = []
    for wave in sorted({stage.wave for stage in stages}):
        before = there | set(made)
        for stage in (stage for stage in stages if stage.wave == wave):
            assert stage.targets and set(stage.context) <= before
            assert bool(stage.context) == bool(before)
            assert len(stage.context) <= context_size
            assert len(stage.targets) + len(stage.context) <= max_slices
            assert list(stage.targets) == sorted(stage.targets) and list(stage.context) == sorted(stage.context)
            made += stage.targets
    assert sorted(made) == sorted(set(range(depth)) - there)
    assert [stage.wave for stage in stages] == sorted(stage.wave for stage in stages)


@pytest.mark.parametrize("depth", [*range(1, 200, 9), 200])
def test_every_slice_is_generated_once_from_slices_that_are_there(depth):
    rng = random.Random(depth)
    for _ in range(20):
        arguments = drawn_arguments(rng, depth)
        check_plan(plan_stages(depth, **arguments), depth, **arguments)


def test_the_papers_scheme_has_13_stages_of_10_and_the_last_of_8():
    stages = plan_stages(128, scheme="autoregressive")
    assert [len(stage.targets) for stage in stages] == [10] * 12 + [8]
    assert stages[0].context == ()
    for previous, stage in pairwise(stages):
        assert stage.context == previous.targets and stage.wave == previous.wave + 1
    assert len(plan_stages(128, scheme="autoregressive", first_stage_size=20)) == 12  # FDM's


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_stage_sees_every_known_slice_beside_its_targets(scheme):
    rng = random.Random(0)
    sets = [range(1, 64, 2), *(rng.sample(range(52), rng.randint(1, 20)) for _ in range(50))]
    for known, context_size in itertools.product(sets, (2, 3, 10)):
        for stage in plan_stages(64, scheme=scheme, known=known, context_size=context_size):
            beside = {number + step for number in stage.targets for step in (-1, 1)}
            assert beside & set(known) <= set(stage.context)
    known = sets[0]
    assert len(plan_stages(64, scheme="autoregressive", known=known, context_size=1)) == 32


@pytest.mark.parametrize(
    ("changes", "slices"),
    [({"scheme": "autoregressive"}, 248), ({}, 318), ({"stage_size": 12, "context_size": 8}, 208)],
)
def test_the_work_at_128_slices_is_that_of_the_documentation(changes, slices):
    assert sum(len(stage.targets) + len(stage.context) for stage in plan_stages(128, **changes)) == slices


def test_an_empty_slice_precedes_the_first_anchored_stage():
    stages = plan_stages(64, scheme="anchored")
    assert stages[0] == SliceStage(targets=tuple(range(1, 11)), context=(0,))
    assert not any(0 in stage.targets for stage in stages)
    assert plan_stages(64, scheme="anchored", known=[0]) == stages
    assert plan_stages(64, scheme="anchored", known=[9]) == plan_stages(64, scheme="autoregressive", known=[9])
    assert plan_stages(1, scheme="anchored") == plan_stages(1)


def test_the_hierarchical_scheme_is_a_comb_and_then_all_gaps():
    comb, *gaps = plan_stages(128)
    assert len(comb.targets) == 20 and comb.context == ()
    assert comb.targets[0] == 0 and comb.targets[-1] == 127
    assert {stage.wave for stage in gaps} == {1} and all(len(stage.context) == 10 for stage in gaps)
    middle = next(stage for stage in gaps if 64 in stage.targets)
    assert sum(number < 64 for number in middle.context) == sum(number > 64 for number in middle.context) == 5


def test_a_deep_volume_is_combed_again_inside_its_gaps():
    stages = plan_stages(512)
    assert max(stage.wave for stage in stages) == 2
    assert max(stage.targets[-1] - stage.targets[0] for stage in stages if stage.wave == 1) > 20
    assert max(last - first + 1 for first, last in find_gaps(stages[0].targets, 512)) == 26


def test_known_slices_are_teeth_of_the_comb():
    comb, *_ = plan_stages(128, known=range(64))
    assert comb.context == tuple(round(127 * tooth / 19) for tooth in range(10))
    assert min(comb.targets) > 64 and comb.targets[-1] == 127
    one = plan_stages(128, known=[62])[0]
    assert one.context == (62,) and len(one.targets) == 19 and not {60, 61, 63} & set(one.targets)


@pytest.mark.parametrize(("step", "calls"), [(2, 7), (4, 10), (8, 15)])
def test_missing_slices_between_thick_ones_take_one_wave(step, calls):
    stages = plan_stages(121, known=range(0, 121, step))
    assert {stage.wave for stage in stages} == {0} and len(stages) == calls
    for stage in stages:
        neighbours = {number // step * step for number in stage.targets}
        assert neighbours | {number + step for number in neighbours} <= set(stage.context)


def test_distant_corrupted_slices_do_not_share_a_stage():
    known = sorted(set(range(64)) - {5, 30, 31, 60})
    stages = plan_stages(64, known=known)
    assert [stage.targets for stage in stages] == [(5,), (30, 31), (60,)]
    assert stages[1].context == (25, 26, 27, 28, 29, 32, 33, 34, 35, 36)


def test_growing_from_a_slice_goes_up_and_down_at_once():
    stages = plan_stages(128, scheme="autoregressive", known=[60])
    assert [stage.targets[0] for stage in stages if stage.wave == 0] == [61, 50]
    assert all(stage.context == (60,) for stage in stages if stage.wave == 0)
    assert max(stage.wave for stage in stages) == 6


def test_nothing_is_planned_where_all_is_known():
    assert plan_stages(5, known=range(5)) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"scheme": "random"}, "scheme is 'random'; use one of 'hierarchical'"),
        ({"known": [3, 64]}, "known has the slice 64; give whole numbers from 0 to 63"),
        ({"known": [-1]}, "known has the slice -1; give whole numbers from 0"),
        ({"known": [1.5]}, "known has the slice 1.5; give whole numbers"),
        ({"known": [3, 5, 3]}, "known has the slice 3 twice; name each slice once"),
        ({"context_size": 15}, "a context of 15 has 25 slices, but this network takes at most 20 at a time"),
        ({"first_stage_size": 21}, "first_stage_size is 21; give a whole number from 1 to 20"),
        ({"stage_size": 0}, "stage_size is 0; give a whole number of at least 1"),
        ({"context_size": 0}, "context_size is 0; give"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan_stages(64, **arguments)


def test_checked_slices_come_in_order():
    assert check_slices("corrupted", [9, 2, 4], 10) == (2, 4, 9)
