"""Markdown of a report: tables of numbers, written the same way everywhere."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column on the left, numbers on the right."""
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)) + "\n"


def number(value: Any) -> str:
    """A number with three to four digits that matter; a dash for none and for NaN."""
    if value is None or math.isnan(value):
        return "-"
    if isinstance(value, int):
        return str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def estimate(entry: Mapping[str, Any] | None) -> str:
    """A value with its 95 % interval, where it has one: "0.41 (0.38 to 0.44)"."""
    if entry is None:
        return "-"
    text = number(entry["value"])
    if entry.get("low") is None:
        return text
    return f"{text} ({number(entry['low'])} to {number(entry['high'])})"


def interval(entry: Mapping[str, Any]) -> str:
    """An :class:`voxdiff.metrics.intervals.Interval` as plain values."""
    return estimate({**entry, "value": entry["estimate"]})
