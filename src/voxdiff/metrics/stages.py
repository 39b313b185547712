"""How a long evaluation tells what it is doing, without knowing who listens."""

from collections.abc import Callable

Advance = Callable[[], None]
"""Called after each step."""

Stage = Callable[[str, int], Advance]
"""Called with what begins and its number of steps."""


def no_stage(text: str, total: int) -> Advance:
    """For nobody."""
    return lambda: None
