"""How the intensities of a volume become what a network sees, and back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# Rule -> the unit its values come back in; a windowed quantity may have another one (ms, SUV), the others may not.
_UNITS = {"window": "HU", "percentile": "a.u.", "minmax": "a.u.", "labels": "label"}


@dataclass(frozen=True, kw_only=True)
class IntensityRule:
    """The intensity half of a `VolumeProcessor`, which documents the arguments."""

    intensity: str = "percentile"
    low: float | None = None
    high: float | None = None
    inside: str = "volume"
    clip_below: float | None = None
    value_range: Sequence[float] = (-1.0, 1.0)
    unit: str | None = None
    background: float | None = None

    def __post_init__(self) -> None:
        """Fills in what the rule implies and refuses what it would not read."""
        check_choice("intensity", self.intensity, tuple(_UNITS))
        check_choice("inside", self.inside, ("volume", "foreground"))
        for name in ("low", "high", "clip_below", "background"):
            if getattr(self, name) is not None:
                self._set(name, check_numbers(name, [getattr(self, name)], 1, "one finite number")[0])
        self._set("value_range", check_numbers("value_range", self.value_range, 2, "two numbers, the lower first"))
        if self.value_range[0] >= self.value_range[1]:
            raise ValueError(f"value_range is {list(self.value_range)}; give two numbers, the lower first.")

        rule, relative = self.intensity, self.intensity in ("percentile", "minmax")
        if self.inside != "volume" and rule != "percentile":
            raise ValueError(f"inside is {self.inside!r} under the {rule!r} rule; only 'percentile' reads it.")
        if self.clip_below is not None and not relative:
            raise ValueError(f"clip_below was given under the {rule!r} rule; only 'percentile' and 'minmax' read it.")
        self._set("unit", _UNITS[rule] if self.unit is None else self.unit)
        if not isinstance(self.unit, str) or (rule != "window" and self.unit != _UNITS[rule]):
            raise ValueError(f"unit is {self.unit!r}; under the {rule!r} rule values come back in {_UNITS[rule]!r}.")
        self._check_ends()
        if self.background is not None and not relative and not self._low <= self.background <= self._high:
            raise ValueError(
                f"background is {self.background:g}; choose a value that the {rule!r} rule can represent, from "
                f"{self._low:g} to {self._high:g}."
            )

    def _check_ends(self) -> None:
        low, high = self.low, self.high
        if self.intensity == "minmax" and (low is not None or high is not None):
            raise ValueError("low or high was given, but the 'minmax' rule takes both from the volume; leave them out.")
        if self.intensity == "window" and (low is None or high is None or low >= high):
            raise ValueError(f"The window is {low} to {high}; give low and high in the volume's unit, low below high.")
        if self.intensity == "percentile":
            self._set("low", 0.1 if low is None else low)
            self._set("high", 99.9 if high is None else high)
            if not 0 <= self._low < self._high <= 100:
                raise ValueError(f"The percentiles are {low} and {high}; give low below high, both from 0 to 100.")
        if self.intensity == "labels":
            self._set("low", 0.0)
            if low not in (None, 0) or high not in range(1, 256):
                raise ValueError(f"The labels run from {low} to {high}; give high, a whole number from 1 to 255, only.")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def _low(self) -> float:
        return 0.0 if self.low is None else self.low

    @property
    def _high(self) -> float:
        return 1.0 if self.high is None else self.high

    @property
    def output_range(self) -> tuple[float, float]:
        """The values, in the output unit, that the two ends of the value range stand for."""
        return (self._low, self._high) if self.intensity in ("window", "labels") else (0.0, 1.0)

    def check_unit(self, values: np.ndarray, name: str, unit: str | None, background: float | None) -> None:
        """Raises a ValueError if the volume is not in the unit that the rule reads."""
        if unit is not None and unit != self.unit and self.intensity in ("window", "labels"):
            raise ValueError(f"{name} is in {unit!r}, but this model works in {self.unit!r}; convert the volume first.")
        lowest = float(values.min())
        if self.unit == "HU" and unit is None and background is None and lowest >= 0:
            raise ValueError(
                f"{name} has no value below {lowest:g}, so it does not look like CT in HU, which this model needs; "
                "if it is, pass unit='HU', or background=<value> for a masked CT."
            )

    def limits(self, values: np.ndarray, name: str, background: float | None) -> tuple[float, float]:
        """The intensities of this volume that become the two ends of the value range.

        Raises:
            ValueError: The volume has no foreground or no contrast, or a label that the model does not know.
        """
        if self.intensity == "window":
            return self._low, self._high
        if self.intensity == "labels":
            wrong = values[(values != np.rint(values)) | (values < 0) | (values > self._high)]
            if wrong.size:
                raise ValueError(
                    f"{name} holds the label {wrong[0]:g}; this model knows the whole numbers 0 to {self._high:g}."
                )
            return self._low, self._high
        if self.inside == "foreground":
            values = values[values != (values.min() if background is None else background)]
            if not values.size:
                raise ValueError(f"{name} is background everywhere; give a volume with a foreground.")
        if self.clip_below is not None:
            values = np.maximum(values, self.clip_below)
        percentiles = (0, 100) if self.intensity == "minmax" else (self._low, self._high)
        low, high = (float(value) for value in np.percentile(values, percentiles))
        if not low < high:
            raise ValueError(
                f"{name} has no contrast, the {self.intensity!r} rule found {low:g} at both ends; give a volume with "
                "contrast, or a processor with other percentiles."
            )
        return low, high

    def encode(self, values: np.ndarray, low: float, high: float) -> np.ndarray:
        """From the volume's unit to `value_range`, clipped."""
        bottom, top = self.value_range
        return (np.clip(values, low, high) - low) / (high - low) * (top - bottom) + bottom

    def decode(self, values: torch.Tensor) -> torch.Tensor:
        """From `value_range` to the output unit, clipped; labels are rounded."""
        bottom, top = self.value_range
        low, high = self.output_range
        values = ((values.float() - bottom) / (top - bottom)).clamp(0, 1) * (high - low) + low
        return values.round() if self.intensity == "labels" else values


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises a ValueError that names the allowed values."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; use one of {', '.join(map(repr, allowed))}.")


def check_numbers(name: str, values: Any, count: int, wanted: str) -> tuple[float, ...]:
    """The values as floats, or a ValueError that says what was wanted."""
    numbers = tuple(values) if isinstance(values, Sequence | np.ndarray) else (values,)
    real = all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in numbers)
    if len(numbers) != count or not real or not all(math.isfinite(value) for value in numbers):
        raise ValueError(f"{name} is {values!r}; give {wanted}.")
    return tuple(float(value) for value in numbers)
