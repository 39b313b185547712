"""Which windows of slices a volume is generated in, and in which order (GEM-3D, arXiv 2403.12852, Algorithm 1)."""

from dataclasses import dataclass

PROPAGATIONS = ("paper", "official")


@dataclass(frozen=True, kw_only=True)
class SliceWindow:
    """Consecutive axial slices that the network sees at once.

    Attributes:
        first: First slice of the window.
        length: Number of slices.
        known: Slices of the window that an earlier wave generated and this one is given.
        generated: Slices that this window writes into the volume.
        informed: Slice of the volume that is this window's informed slice; None is the one given for the volume.
        wave: Windows of one wave do not depend on each other and run in one batch.
    """

    first: int
    length: int
    known: tuple[int, ...] = ()
    generated: tuple[int, ...]
    informed: int | None = None
    wave: int = 0

    @property
    def slices(self) -> range:
        """All slices of the window."""
        return range(self.first, self.first + self.length)


def plan_windows(
    depth: int, start: int, *, window: int = 16, overlap: int = 1, propagation: str = "paper"
) -> list[SliceWindow]:
    """Windows that generate each slice of a volume exactly once, sorted by wave.

    A window that would leave the volume is moved inside, and all slices of a window that are already generated are
    known: the official code keeps one known slice, from up to 14 slices further in than where it writes it.

    Args:
        depth: Slices of the volume, at least `window`.
        start: Slice at whose position the informed slice was taken.
        window: Slices of a window.
        overlap: Known slices at the end of a window that is not moved.
        propagation: ``"paper"``: one window from `start` on, and both directions continue from it. ``"official"``: both
            directions begin with a window of their own that ends at `start` and sees the given informed slice only.

    Raises:
        ValueError: If an argument is out of its range.
    """
    _check_plan(depth, start, window, overlap, propagation)
    up = min(start, depth - window)
    if propagation == "paper":
        begin = [SliceWindow(first=up, length=window, generated=tuple(range(up, up + window)))]
        below, above = up, up + window
    else:
        begin, below, above = _begin_both_ways(depth, start, up, window)
    windows = begin + _upward(above, depth, window, overlap) + _downward(below, window, overlap)
    return sorted(windows, key=lambda entry: entry.wave)


def tile_windows(depth: int, window: int) -> list[SliceWindow]:
    """Independent windows side by side, the last one moved inside: for models without informed slice (Make-A-Volume).

    Two of them make a wave, as many as the two directions of :func:`plan_windows`.

    Raises:
        ValueError: If the volume has fewer slices than a window.
    """
    _check_plan(depth, 0, window, 1, "paper")
    return [
        SliceWindow(
            first=min(begin, depth - window),
            length=window,
            generated=tuple(range(begin, min(begin + window, depth))),
            wave=place // 2,
        )
        for place, begin in enumerate(range(0, depth, window))
    ]


def _begin_both_ways(depth: int, start: int, up: int, window: int) -> tuple[list[SliceWindow], int, int]:
    """The first window of each direction, and the slices from which and up to which the volume is generated then.

    The start slice is the downward window's, as in the official code, and the upward one's where nothing lies below.
    """
    down = max(start - window + 1, 0)
    boundary = start + 1 if start else 0
    windows = []
    if boundary < depth:
        windows.append(SliceWindow(first=up, length=window, generated=tuple(range(boundary, up + window))))
    if boundary:
        windows.append(SliceWindow(first=down, length=window, generated=tuple(range(down, boundary))))
    return windows, down, up + window


def _upward(edge: int, depth: int, window: int, overlap: int) -> list[SliceWindow]:
    """Windows that generate the slices from `edge` to the last, where the window below `edge` is there."""
    windows: list[SliceWindow] = []
    while edge < depth:
        first = min(edge - overlap, depth - window)
        windows.append(
            SliceWindow(
                first=first,
                length=window,
                known=tuple(range(first, edge)),
                generated=tuple(range(edge, first + window)),
                informed=edge - 1,
                wave=len(windows) + 1,
            )
        )
        edge = first + window
    return windows


def _downward(edge: int, window: int, overlap: int) -> list[SliceWindow]:
    """Windows that generate the slices below `edge`, where the window from `edge` on is there."""
    windows: list[SliceWindow] = []
    while edge > 0:
        first = max(edge + overlap - window, 0)
        windows.append(
            SliceWindow(
                first=first,
                length=window,
                known=tuple(range(edge, first + window)),
                generated=tuple(range(first, edge)),
                informed=edge,
                wave=len(windows) + 1,
            )
        )
        edge = first
    return windows


def _check_plan(depth: int, start: int, window: int, overlap: int, propagation: str) -> None:
    if propagation not in PROPAGATIONS:
        raise ValueError(f"propagation is {propagation!r}; use one of {', '.join(map(repr, PROPAGATIONS))}.")
    if not isinstance(window, int) or window < 2:
        raise ValueError(f"window is {window!r}; give a whole number of at least 2 slices.")
    if not isinstance(overlap, int) or not 1 <= overlap < window:
        raise ValueError(f"overlap is {overlap!r}; give 1 to {window - 1} slices, fewer than the window has.")
    if depth < window:
        raise ValueError(
            f"The volume has {depth} slices, the window {window}; pad the volume or take a shorter window."
        )
    if not 0 <= start < depth:
        raise ValueError(f"The start slice is {start}; this volume has the slices 0 to {depth - 1}.")
