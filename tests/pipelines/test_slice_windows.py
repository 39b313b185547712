import pytest

from voxdiff.pipelines.slice_windows import plan_windows, tile_windows

WINDOWS = range(4, 25)
OVERLAPS = range(1, 4)


def check_plan(plan, depth, window):
    """Each slice is written once, inside the volume, and what a window is given was written by an earlier wave."""
    there, written, wave = set(), [], 0
    for entry in plan:
        if entry.wave > wave:
            there.update(written)
        assert entry.wave >= wave
        wave = entry.wave
        assert entry.first >= 0 and entry.first + window <= depth and entry.length == window
        slices = set(entry.slices)
        assert slices.issuperset(entry.known) and slices.issuperset(entry.generated) and entry.generated
        assert there.issuperset(entry.known)
        assert entry.informed is None or entry.informed in entry.known
        written += entry.generated
    assert sorted(written) == list(range(depth))


@pytest.mark.parametrize("propagation", ["paper", "official"])
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_every_slice_is_generated_once_from_slices_that_are_there(overlap, propagation):
    """All depths and windows; the starts are half a volume apart, from another one on each time."""
    for window in WINDOWS:
        for depth in range(window, 201):
            stride = depth // 2
            for start in range((7 * window + overlap) % stride if stride > 1 else 0, depth, max(stride, 1)):
                plan = plan_windows(depth, start, window=window, overlap=overlap, propagation=propagation)
                check_plan(plan, depth, window)


@pytest.mark.slow
@pytest.mark.parametrize("propagation", ["paper", "official"])
@pytest.mark.parametrize("window", WINDOWS)
def test_every_slice_is_generated_once_from_every_start(window, propagation):
    for depth in range(window, 201):
        for start in range(depth):
            for overlap in OVERLAPS:
                plan = plan_windows(depth, start, window=window, overlap=overlap, propagation=propagation)
                check_plan(plan, depth, window)


def test_both_directions_continue_from_the_first_window():
    plan = plan_windows(50, 20, window=16, overlap=1)
    assert [(entry.wave, entry.first) for entry in plan] == [(0, 20), (1, 34), (1, 5), (2, 0)]
    first, up, down, last = plan
    assert first.known == () and first.informed is None and first.generated == tuple(range(20, 36))
    assert up.known == (34, 35) and up.informed == 35  # moved inside by one slice: both finished slices are known
    assert down.known == (20,) and down.informed == 20
    assert last.known == tuple(range(5, 16)) and last.informed == 5


def test_the_official_directions_share_the_informed_slice_only():
    plan = plan_windows(60, 30, window=16, propagation="official")
    assert [(entry.wave, entry.first) for entry in plan] == [(0, 30), (0, 15), (1, 44), (1, 0)]
    assert [(entry.known, entry.informed) for entry in plan[:2]] == [((), None), ((), None)]
    assert plan[0].generated == tuple(range(31, 46)) and plan[1].generated == tuple(range(15, 31))


@pytest.mark.parametrize("start", [1, 16, 31])
def test_the_starts_at_which_the_official_code_leaves_a_slice_empty(start):
    plan = plan_windows(60, start, propagation="official")
    assert {0, 15} <= {number for entry in plan for number in entry.generated}


@pytest.mark.parametrize(("overlap", "known"), [(1, (15,)), (3, (13, 14, 15))])
def test_the_overlap_is_known(overlap, known):
    assert plan_windows(100, 0, overlap=overlap)[1].known == known


@pytest.mark.parametrize("window", WINDOWS)
def test_tiles_are_independent_and_cover_the_volume(window):
    for depth in range(window, 201):
        plan = tile_windows(depth, window)
        check_plan(plan, depth, window)
        assert all(not entry.known and entry.informed is None for entry in plan)
        assert len(plan) == -(-depth // window)
        assert max(sum(entry.wave == wave for entry in plan) for wave in range(len(plan))) <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 15}, "has 15 slices, the window 16"),
        ({"start": 60}, "start slice is 60; this volume has the slices 0 to 59"),
        ({"start": -1}, "start slice is -1"),
        ({"overlap": 16}, "overlap is 16; give 1 to 15"),
        ({"overlap": 0}, "overlap is 0"),
        ({"window": 1}, "window is 1"),
        ({"propagation": "both"}, "propagation is 'both'; use one of 'paper', 'official'"),
    ],
)
def test_impossible_plans_raise(arguments, message):
    depth, start = arguments.pop("depth", 60), arguments.pop("start", 3)
    with pytest.raises(ValueError, match=message):
        plan_windows(depth, start, **arguments)
