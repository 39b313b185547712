"""Volumes with their masks as an autoencoder of slices sees them, and those that are held out of its training."""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from voxdiff.pipelines.mask_values import MaskEncoder
from voxdiff.training.batches import keyed_generator
from voxdiff.training.slice_sources import SliceSource

_HELD_OUT_SEED = 216  # as for the 3D autoencoders; the run's own would mix what two runs train on and hold out


class SliceVolumes(Dataset):
    """Some volumes of a source; items are ``image`` and ``mask``, each float32 ``(1, x, y, z)``.

    Args:
        source: Volumes with masks.
        places: Which of them.
    """

    def __init__(self, source: SliceSource, places: Sequence[int]) -> None:
        self.source = source
        self.places = places
        self._encoder = MaskEncoder(source.mask_values)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = self.source[self.places[index]]
        return {"image": item["image"], "mask": self._encoder.encode(item["mask"])[None]}


class SliceVolumeColumn(Sequence[torch.Tensor]):
    """The images alone, or the masks."""

    def __init__(self, volumes: SliceVolumes, name: str) -> None:
        self.volumes = volumes
        self.name = name

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index):
        return self.volumes[index][self.name]


def hold_out_subjects(source: SliceSource, count: int) -> tuple[SliceVolumes, SliceVolumes]:
    """Training volumes, and all volumes of ``count`` subjects that are kept out of them.

    The choice depends on the subjects' names only.

    Raises:
        ValueError: If there are no more subjects than that.
    """
    subjects = sorted(set(source.subject_ids))
    if len(subjects) <= count:
        raise ValueError(
            f"There are {len(subjects)} subjects, and {count} are held out for the report; add subjects, or lower "
            "--num_held_out."
        )
    order = torch.randperm(len(subjects), generator=keyed_generator(_HELD_OUT_SEED, "held-out")).tolist()
    held = {subjects[place] for place in order[:count]}
    kept_out, trained = (
        [place for place, subject in enumerate(source.subject_ids) if (subject in held) is wanted]
        for wanted in (True, False)
    )
    return SliceVolumes(source, trained), SliceVolumes(source, kept_out)
