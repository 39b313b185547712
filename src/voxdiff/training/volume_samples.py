"""Volumes of several classes and grids as one data set, and those that are held out of it."""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from voxdiff.training.batches import keyed_generator
from voxdiff.training.class_sources import VolumeSource

_HELD_OUT_SEED = 216  # the published one; the run's own would mix training and held-out volumes of two stages


class VolumeSamples(Dataset):
    """Volumes of sources; items are ``{"volume": (1, x, y, z)}`` in the value range of their processor.

    Args:
        places: Source and place in it of each volume.

    Attributes:
        buckets: Indices of the volumes of each grid: what can be stacked.
    """

    def __init__(self, places: Sequence[tuple[VolumeSource, int]]) -> None:
        self.places = places
        grids: dict[tuple[int, ...], list[int]] = {}
        for index, (source, _) in enumerate(places):
            grids.setdefault(tuple(source.processor.size or ()), []).append(index)
        self.buckets = list(grids.values())

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        source, place = self.places[index]
        return {"volume": source.volume(place)}


class HeldOutVolumes(Sequence[torch.Tensor]):
    """The volumes of samples alone."""

    def __init__(self, samples: VolumeSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]["volume"]


def hold_out(sources: Sequence[VolumeSource], count: int) -> tuple[VolumeSamples, HeldOutVolumes]:
    """Training samples, and ``count`` volumes of each source that are kept out of them.

    The choice depends on the number of volumes only, so that the two stages, and sources of the same subjects, keep the
    same ones.

    Raises:
        ValueError: If a source has no more volumes than that.
    """
    trained, held = [], []
    for source in sources:
        if len(source) <= count:
            raise ValueError(
                f"There are {len(source)} volumes of a class and grid, and {count} are held out for the report; add "
                "volumes, or lower --num_held_out."
            )
        order = torch.randperm(len(source), generator=keyed_generator(_HELD_OUT_SEED, "held-out")).tolist()
        held += [(source, place) for place in order[:count]]
        trained += [(source, place) for place in sorted(order[count:])]
    return VolumeSamples(trained), HeldOutVolumes(VolumeSamples(held))
