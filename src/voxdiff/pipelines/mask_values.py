"""Which number the network sees for each label of a mask."""

import math
from collections.abc import Mapping
from numbers import Real

import numpy as np
import torch


class MaskEncoder:
    """The table from a label to the value that the autoencoder sees.

    Label coding differs between data sets (the released brain weights know the order of MSD Task01, BraTS 2023 has
    another one), so the table belongs to the model and is stored with it; no label is translated silently.

    Args:
        values: Label, a whole number (or that number as a string, as JSON stores it) -> finite value, usually in
            [-1, 1]; nnU-Net's label -1 ("outside") has a value below.

    Raises:
        ValueError: If the table is too small or too large, a label is no whole number, or a value is not finite.

    Example:
        >>> MaskEncoder({0: -1.0, 1: 1.0}).encode(torch.tensor([0, 1, 1]))
        tensor([-1.,  1.,  1.])
    """

    def __init__(self, values: Mapping[int, float] | Mapping[str, float]) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(f"mask_values is {values!r}; give a mapping of label -> value.")
        if not all(isinstance(value, Real) and math.isfinite(value) for value in values.values()):
            raise ValueError(f"mask_values holds {dict(values)}; give each label a finite value.")
        table = {_whole(label): float(value) for label, value in values.items()}
        if not 2 <= len(table) <= 256 or len(table) != len(values):
            raise ValueError(f"mask_values holds {dict(values)}; give 2 to 256 different labels, each with its value.")
        self.values = dict(sorted(table.items()))

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels in ascending order."""
        return tuple(self.values)

    @property
    def background(self) -> int:
        """The lowest label, which masks are padded with."""
        return self.labels[0]

    def to_dict(self) -> dict[str, float]:
        """The table as JSON holds it."""
        return {str(label): value for label, value in self.values.items()}

    def index(self, labels: np.ndarray | torch.Tensor, name: str = "The mask") -> torch.Tensor:
        """Place of each voxel's label among :attr:`labels`, int64 of the same shape.

        Raises:
            ValueError: If a value of `labels` is not in the table.
        """
        received = torch.from_numpy(np.ascontiguousarray(labels, dtype=np.float64))
        table = torch.tensor(self.labels, dtype=torch.float64)
        places = torch.searchsorted(table, received).clamp(max=len(table) - 1)
        wrong = received[table[places] != received]
        if wrong.numel():
            raise ValueError(
                f"{name} holds the label {float(wrong[0]):g}, which this model does not know; its labels are "
                f"{', '.join(map(str, self.labels))}: translate the mask's labels first."
            )
        return places

    def encode(self, labels: np.ndarray | torch.Tensor, name: str = "The mask") -> torch.Tensor:
        """What the autoencoder sees of labels of any shape: float32 of the same shape.

        Raises:
            ValueError: If a value of `labels` is not in the table.
        """
        return self.encode_index(self.index(labels, name))

    def encode_index(self, places: torch.Tensor) -> torch.Tensor:
        """The same from places among :attr:`labels`."""
        return torch.tensor(list(self.values.values()), dtype=torch.float32)[places]


def linear_mask_values(highest: int, *, outside: bool = False) -> dict[int, float]:
    """The published table: label l of 0 to `highest` becomes 2 l / highest - 1.

    Args:
        highest: Highest label: 3 for the released brain weights, 4 for the abdomen.
        outside: Whether the table has nnU-Net's label -1 too, which the same rule puts below -1.

    Raises:
        ValueError: If `highest` is no whole number of at least 1.
    """
    if not isinstance(highest, int) or highest < 1:
        raise ValueError(f"The highest label is {highest!r}; give a whole number of at least 1.")
    return {label: 2 * label / highest - 1 for label in range(-1 if outside else 0, highest + 1)}


def _whole(label: int | str) -> int:
    try:
        whole = int(label)
    except (TypeError, ValueError):
        whole = None
    if whole is None or (not isinstance(label, str) and whole != label):
        raise ValueError(f"mask_values has the label {label!r}; give whole numbers.")
    return whole
