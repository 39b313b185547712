"""Which maps of a decoder are stored and which are recomputed slab by slab, so that a memory budget is kept.

A map is stored in one pass over its rows, which gathers its group statistics at the same time. A map that is not stored
costs a pass for the statistics alone, and is computed again in every later pass that reads it: time for memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from voxdiff.models.slab_maps import AttentionMap, ConvMap, SlabMap, UpsampleMap

# keeps a slab of any published width well under 2**31 numbers, beyond which CUDA's kernels are slow or refuse
SLAB_VOXELS = 2**22


@dataclass(frozen=True)
class SlabPass:
    """One sweep over the rows of a map.

    Attributes:
        index: Place of the map.
        rows: Rows of a slab.
        stores: Whether the map is stored, not only measured for the group norm that follows it.
        in_place: Whether it is stored over its residual, which no later pass reads.
        frees: Places of the stored maps that no later pass reads.
        peak_bytes: Predicted peak memory.
    """

    index: int
    rows: int
    stores: bool
    in_place: bool
    frees: tuple[int, ...]
    peak_bytes: int


@dataclass(frozen=True)
class SlabPlan:
    """The passes of a decoding, in order.

    Attributes:
        passes: What is done.
        peak_bytes: Predicted peak of the memory allocated by the decoding, the result included. Not counted: weights
            and input, which are there before, and what oneDNN takes to compute 16-bit numbers on a CPU in fp32.
        multiply_adds: Work for one sample.
        whole_multiply_adds: Work for one sample if nothing is computed twice.
        minimum_bytes: Smallest peak of any plan for this size.
    """

    passes: tuple[SlabPass, ...]
    peak_bytes: int
    multiply_adds: int
    whole_multiply_adds: int
    minimum_bytes: int


@dataclass(frozen=True)
class _Sweep:
    """A pass without its slab size: ``lazy`` maps are computed on the way, ``live`` ones are stored meanwhile."""

    index: int
    stores: bool
    in_place: bool
    frees: tuple[int, ...]
    lazy: tuple[int, ...]
    live: tuple[int, ...]


@dataclass(frozen=True)
class _Option:
    """One choice of the maps of a stretch that are stored; the peak is that of slabs of one row, without the result."""

    multiply_adds: int
    peak_bytes: int
    sweeps: tuple[_Sweep, ...]


def make_plan(maps: Sequence[SlabMap], budget_bytes: int, *, itemsize: int, batch_size: int = 1) -> SlabPlan:
    """Choose the passes with the least work whose predicted peak keeps the budget.

    Args:
        maps: Maps in the order of computation, the input first, the result last.
        budget_bytes: Memory that may be allocated.
        itemsize: Bytes of a number.
        batch_size: Samples, decoded one after another; their results are held together.

    Raises:
        ValueError: If no plan keeps the budget; the message names the smallest one that can be kept.
    """
    result_bytes = batch_size * _map_bytes(maps[-1], itemsize)
    options = [_options(maps, stretch, itemsize) for stretch in _stretches(maps)]
    minimum = result_bytes + max(min(option.peak_bytes for option in stretch) for stretch in options)
    if minimum > budget_bytes:
        raise ValueError(
            f"A budget of {budget_bytes / 2**30:.3g} GiB is too small to decode {batch_size} volume(s) of "
            f"{' x '.join(map(str, maps[-1].size))} voxels with {itemsize} bytes a number; slab decoding takes at least "
            f"{_round_up(minimum)} GiB: raise max_memory_gb, or decode a smaller volume or fewer at a time."
        )
    left = budget_bytes - result_bytes
    chosen = [next(option for option in stretch if option.peak_bytes <= left) for stretch in options]
    passes = tuple(
        _with_slabs(maps, sweep, left, itemsize, result_bytes) for option in chosen for sweep in option.sweeps
    )
    return SlabPlan(
        passes=passes,
        peak_bytes=max(step.peak_bytes for step in passes),
        multiply_adds=sum(option.multiply_adds for option in chosen),
        whole_multiply_adds=sum(map_.multiply_adds() for map_ in maps[1:]),
        minimum_bytes=minimum,
    )


def _round_up(size: int) -> str:
    digits = 1000
    return f"{-(-size * digits // 2**30) / digits:g}"


def _stretches(maps: Sequence[SlabMap]) -> Iterator[list[int]]:
    """Split the maps after each one that is stored in any plan: what attention or a doubling reads, and the result."""
    always = {len(maps) - 1}
    for index, map_ in enumerate(maps):
        if isinstance(map_, AttentionMap | UpsampleMap):
            always.add(maps.index(map_.source))
        if isinstance(map_, AttentionMap):
            always.add(index)
    stretch: list[int] = []
    for index in range(1, len(maps)):
        stretch.append(index)
        if index in always:
            yield stretch
            stretch = []


def _options(maps: Sequence[SlabMap], stretch: list[int], itemsize: int) -> list[_Option]:
    """Every choice of the maps of a stretch that are not stored (the last one always is), the least work first."""
    options = []
    for count in range(len(stretch)):
        for lazy in combinations(stretch[:-1], count):
            sweeps = _sweeps(maps, stretch, set(lazy))
            work = sum(maps[index].multiply_adds() for sweep in sweeps for index in (sweep.index, *sweep.lazy))
            options.append(_Option(work, max(_peak(maps, sweep, 1, itemsize) for sweep in sweeps), sweeps))
    return sorted(options, key=lambda option: (option.multiply_adds, option.peak_bytes))


def _sweeps(maps: Sequence[SlabMap], stretch: list[int], lazy: set[int]) -> tuple[_Sweep, ...]:
    targets = [index for index in stretch if index not in lazy or maps[index].moments is not None]
    reads = [_reads(maps, target, lazy) for target in targets]
    last_read = {index: place for place, (_, stored) in enumerate(reads) for index in stored}
    sweeps, live = [], {stretch[0] - 1}
    for place, target in enumerate(targets):
        computed, _ = reads[place]
        frees = tuple(sorted(index for index in live if last_read[index] == place))
        stores = target not in lazy
        in_place = stores and not computed and _residual(maps, target) in frees
        if stores and not in_place:
            live.add(target)
        sweeps.append(_Sweep(target, stores, in_place, frees, tuple(sorted(computed)), tuple(sorted(live))))
        live = (live | {target} if stores else live) - set(frees)
    return tuple(sweeps)


def _residual(maps: Sequence[SlabMap], target: int) -> int | None:
    """Place of the map that is added to ``target`` as it is."""
    map_ = maps[target]
    if isinstance(map_, ConvMap) and map_.residual is not None and map_.shortcut is None:
        return maps.index(map_.residual)
    return None


def _reads(maps: Sequence[SlabMap], target: int, lazy: set[int]) -> tuple[set[int], set[int]]:
    """Places of the maps that a sweep over ``target`` computes on the way, and of the stored ones that it reads."""
    computed: set[int] = set()
    stored: set[int] = set()
    waiting = [target]
    while waiting:
        for source in maps[waiting.pop()].sources:
            index = maps.index(source)
            if index not in lazy:
                stored.add(index)
            elif index not in computed:
                computed.add(index)
                waiting.append(index)
    return computed, stored


def _with_slabs(
    maps: Sequence[SlabMap], sweep: _Sweep, budget_bytes: int, itemsize: int, result_bytes: int
) -> SlabPass:
    """Give a sweep the largest useful slabs that keep the budget."""
    depth, height, width = maps[sweep.index].size
    rows = max(min(depth, SLAB_VOXELS // (height * width)), 1)
    while rows > 1 and _peak(maps, sweep, rows, itemsize) > budget_bytes:
        rows = -(-rows // 2)
    peak = result_bytes + _peak(maps, sweep, rows, itemsize)
    return SlabPass(sweep.index, rows, sweep.stores, sweep.in_place, sweep.frees, peak)


def _peak(maps: Sequence[SlabMap], sweep: _Sweep, rows: int, itemsize: int) -> int:
    """Predicted bytes at the worst moment of a sweep in slabs of ``rows`` rows, without the result."""
    stored = sum(_map_bytes(maps[index], itemsize) for index in sweep.live if 0 < index < len(maps) - 1)
    target = maps[sweep.index]
    prepared = target.prepared_elements() * itemsize if isinstance(target, AttentionMap) else 0
    windows = _windows(maps, sweep, rows)
    worst = 0
    for index in windows:
        before = sum(windows[other] * maps[other].row_elements for other in windows if other < index)
        kept = sum(2 * maps[other].row_elements for other in sweep.lazy if other >= index)
        worst = max(worst, before + kept + maps[index].transient_elements(windows[index]))
    return stored + prepared + worst * itemsize


def _windows(maps: Sequence[SlabMap], sweep: _Sweep, rows: int) -> dict[int, int]:
    """Rows of each computed map that a sweep holds at once, at most.

    Behind the first slab each map asks its sources for a halo at both ends of as many new rows as the slab has; the
    first slab asks for a halo that grows from map to map, but at one end only.
    """
    windows = {sweep.index: rows}
    for index in sorted((sweep.index, *sweep.lazy), reverse=True):
        halo = maps[index].halo
        for source in map(maps.index, maps[index].sources):
            if source in sweep.lazy:
                asked = max(windows[index] + halo, rows + 2 * halo)
                windows[source] = min(max(asked, windows.get(source, 0)), maps[source].depth)
    return windows


def _map_bytes(map_: SlabMap, itemsize: int) -> int:
    return map_.depth * map_.row_elements * itemsize
