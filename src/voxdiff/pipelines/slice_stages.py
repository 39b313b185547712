"""The order in which slices of a volume are generated from each other (cDPM, arXiv 2212.08034, and its relatives).

A stage generates some slices (targets) given some that are there (context); stages of one wave do not depend on each
other. Every slice is generated once, and a stage never needs a padding slot.
"""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral

SCHEMES = ("hierarchical", "autoregressive", "anchored")

Gap = tuple[int, int]  # first and last slice of a run
Pair = tuple[tuple[int, ...], tuple[int, ...]]  # targets and context


@dataclass(frozen=True, kw_only=True)
class SliceStage:
    """Slices that one run of the sampler generates.

    Attributes:
        targets: Slices to generate, ascending.
        context: Slices that it sees, known or generated in an earlier wave, ascending.
        wave: Stages of one wave do not depend on each other.
    """

    targets: tuple[int, ...]
    context: tuple[int, ...] = ()
    wave: int = 0


def plan_stages(
    depth: int,
    *,
    scheme: str = "hierarchical",
    known: Sequence[int] = (),
    stage_size: int = 10,
    context_size: int = 10,
    first_stage_size: int | None = None,
    max_slices: int = 20,
) -> list[SliceStage]:
    """Stages that generate each unknown slice of a volume exactly once, sorted by wave.

    A stage's context are the slices nearest to its targets, in turns from both sides of each gap; that of a comb over the
    volume are the known slices right beside its targets and those in the place of a tooth.

    Args:
        depth: Slices of the volume.
        scheme: ``"autoregressive"``: stage after stage upwards from the lowest known slice, or from slice 0 (the paper),
            and at the same time downwards from it. ``"anchored"``: the same, with slice 0 known to be empty where
            nothing is known (the author's port). ``"hierarchical"``: one comb over the whole volume that takes known
            slices as its teeth, then all gaps at once; a gap longer than a stage is combed again.
        known: Slices that are there already, in any order.
        stage_size: Most targets of a stage.
        context_size: Most context of a stage.
        first_stage_size: Most slices of the first stage, fewer where `max_slices` leaves no room beside its context, or of
            the comb; None is `stage_size`, for the comb `max_slices`. Without effect where known slices need no comb.
        max_slices: Most slices of a stage, targets and context: what the network was trained with (τ_max).

    Raises:
        ValueError: If an argument is out of its range, a slice is not in the volume or is named twice.
    """
    _check_sizes(depth, scheme, stage_size, context_size, first_stage_size, max_slices)
    # Comparisons of numpy's numbers are no Python booleans, which count as numbers below.
    stage_size, context_size = int(stage_size), int(context_size)
    first_stage_size = None if first_stage_size is None else int(first_stage_size)
    done = set(check_slices("known", known, depth))
    if scheme == "anchored" and not done and depth > 1:
        done = {0}
    stages: list[SliceStage] = []
    while len(done) < depth:
        wave = stages[-1].wave + 1 if stages else 0
        if scheme == "hierarchical":
            first = max_slices if first_stage_size is None else first_stage_size
            comb = [] if wave else _comb_volume(done, depth, first, stage_size, context_size, max_slices)
            pairs = comb or _fill_gaps(done, depth, stage_size, context_size)
        else:
            first = stage_size if first_stage_size is None else first_stage_size
            room = max_slices - min(context_size, len(done))
            pairs = _grow(done, depth, min(first, room) if wave == 0 else stage_size, context_size)
        stages += [SliceStage(targets=targets, context=context, wave=wave) for targets, context in pairs]
        done.update(*(targets for targets, _ in pairs))
    return stages


def check_slices(name: str, slices: Sequence[int], depth: int) -> tuple[int, ...]:
    """The slices in ascending order.

    Raises:
        ValueError: If they are no sequence, one is no whole number from 0 to ``depth - 1``, or is named twice.
    """
    if not isinstance(slices, Collection):
        raise ValueError(f"{name} is {slices!r}; give a sequence of slices.")
    for number in slices:
        if not isinstance(number, Integral) or isinstance(number, bool) or not 0 <= number < depth:
            raise ValueError(f"{name} has the slice {number!r}; give whole numbers from 0 to {depth - 1}.")
    ordered = sorted(int(number) for number in slices)
    for number, following in pairwise(ordered):
        if number == following:
            raise ValueError(f"{name} has the slice {number} twice; name each slice once.")
    return tuple(ordered)


def find_gaps(done: Collection[int], depth: int) -> list[Gap]:
    """First and last slice of each run of slices that are not there, ascending."""
    edges = [-1, *sorted(done), depth]
    return [(below + 1, above - 1) for below, above in pairwise(edges) if above - below > 1]


def _grow(done: Collection[int], depth: int, size: int, context_size: int) -> list[Pair]:
    """The next stage above and the next one below the lowest slice that is there."""
    if not done:
        return [(tuple(range(min(size, depth))), ())]
    lowest = min(done)
    above = tuple([number for number in range(lowest, depth) if number not in done][:size])
    while len(above) > 1 and len(_neighbours(above, done)) > context_size:
        above = above[:-1]
    below = tuple(range(max(lowest - size, 0), lowest))
    return [(targets, _nearest(targets, done, context_size)) for targets in (above, below) if targets]


def _comb_volume(
    done: Collection[int], depth: int, teeth: int, stage_size: int, context_size: int, max_slices: int
) -> list[Pair]:
    """A comb over the volume; a slice that is there within half the pitch takes a tooth's place.

    Empty if every gap fits into a stage, or the whole comb is there.
    """
    teeth = min(teeth, depth)
    if not done:
        return [(spread_slices(0, depth - 1, teeth), ())]
    if all(last - first < stage_size for first, last in find_gaps(done, depth)):
        return []
    reach = (depth - 1) / (2 * max(teeth - 1, 1))
    targets, near_teeth = [], set()
    for place, tooth in enumerate(spread_slices(0, depth - 1, teeth)):
        nearest = min(done, key=lambda known: (abs(known - 2 * reach * place), known))
        if abs(nearest - 2 * reach * place) <= reach:
            near_teeth.add(nearest)
        else:
            targets.append(tooth)
    while len(_neighbours(targets, done)) > min(context_size, max_slices - len(targets)):
        targets.pop()
    beside = _neighbours(targets, done)
    room = min(context_size, max_slices - len(targets)) - len(beside)
    context = beside.union(_nearest(targets, near_teeth - beside, room))
    return [(tuple(targets), tuple(sorted(context)))] if targets and context else []


def _fill_gaps(done: Collection[int], depth: int, stage_size: int, context_size: int) -> list[Pair]:
    """Every gap that fits into a stage, together with near ones, and a comb in every longer gap."""
    stages: list[tuple[int, ...]] = []
    group: list[Gap] = []
    for first, last in find_gaps(done, depth):
        if last - first >= stage_size:
            stages.append(_comb_gap(first, last, depth, stage_size))
            group = []
            continue
        if not group or not _fits(group, (first, last), depth, stage_size, context_size):
            group = []
            stages.append(())
        group.append((first, last))
        stages[-1] += tuple(range(first, last + 1))
    return [(targets, _nearest(targets, done, context_size)) for targets in stages]


def _comb_gap(first: int, last: int, depth: int, teeth: int) -> tuple[int, ...]:
    """Slices spread over a gap that is longer; one at the end of the volume includes that end."""
    below, above = first > 0, last < depth - 1
    comb = spread_slices(first - below, last + above, teeth + below + above)
    return comb[below : len(comb) - above]


def _fits(group: Sequence[Gap], gap: Gap, depth: int, stage_size: int, context_size: int) -> bool:
    """Whether a gap may share the stage of those before it.

    The targets must fit, the neighbours of all gaps must be context, and the gaps must be so near that the context of
    one serves the other.
    """
    gaps = [*group, gap]
    count = sum(last - first + 1 for first, last in gaps)
    neighbours = {number for first, last in gaps for number in (first - 1, last + 1) if 0 <= number < depth}
    apart = gap[0] - group[-1][1] - 1
    return count <= stage_size and len(neighbours) <= context_size and apart <= max(context_size // 2, 1)


def _nearest(targets: Sequence[int], available: Collection[int], count: int) -> tuple[int, ...]:
    """The `count` slices that come first when one walks up and down from every target."""
    ordered = sorted(available)
    ranks: dict[int, tuple[int, int]] = {}
    for target in targets:
        place = bisect_left(ordered, target)
        for side in (ordered[max(place - count, 0) : place][::-1], ordered[place : place + count]):
            for rank, number in enumerate(side):
                found = (rank, abs(number - target))
                ranks[number] = min(found, ranks.get(number, found))
    return tuple(sorted(sorted(ranks, key=lambda number: (ranks[number], number))[:count]))


def _neighbours(targets: Sequence[int], done: Collection[int]) -> set[int]:
    """The slices that are there right below or above one of the targets."""
    return {number for target in targets for number in (target - 1, target + 1) if number in done}


def spread_slices(first: int, last: int, count: int) -> tuple[int, ...]:
    """Whole numbers evenly spread from `first` to `last`, both included where there are two."""
    steps = max(count - 1, 1)
    return tuple(first + (2 * place * (last - first) + steps) // (2 * steps) for place in range(count))


def _check_sizes(
    depth: int, scheme: str, stage_size: int, context_size: int, first_stage_size: int | None, max_slices: int
) -> None:
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; use one of {', '.join(map(repr, SCHEMES))}.")
    sizes = {"depth": depth, "stage_size": stage_size, "context_size": context_size, "max_slices": max_slices}
    for name, size in sizes.items():
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} is {size!r}; give a whole number of at least 1.")
    if stage_size + context_size > max_slices:
        raise ValueError(
            f"A stage of {stage_size} slices with a context of {context_size} has {stage_size + context_size} slices, but "
            f"this network takes at most {max_slices} at a time; give fewer."
        )
    first = stage_size if first_stage_size is None else first_stage_size
    if not isinstance(first, Integral) or isinstance(first, bool) or not 1 <= first <= max_slices:
        raise ValueError(f"first_stage_size is {first!r}; give a whole number from 1 to {max_slices}.")
