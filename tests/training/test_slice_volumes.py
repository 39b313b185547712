import pytest
import torch

from voxdiff.training.slice_volumes import SliceVolumeColumn, SliceVolumes, hold_out_subjects


class Source:
    """Volumes whose values are their place; two scans of each subject."""

    mask_values = {0: -1.0, 1: 0.5}

    def __init__(self, subjects):
        self.subject_ids = [name for name in subjects for _ in range(2)]

    def __len__(self):
        return len(self.subject_ids)

    def __getitem__(self, index):
        return {"image": torch.full((1, 2, 2, 3), index / 100), "mask": torch.ones(2, 2, 3, dtype=torch.uint8)}


def test_masks_are_seen_as_the_networks_see_them():
    volumes = SliceVolumes(Source("abc"), [4, 1])
    assert len(volumes) == 2
    assert torch.equal(volumes[1]["image"], torch.full((1, 2, 2, 3), 0.01))
    assert torch.equal(volumes[0]["mask"], torch.full((1, 2, 2, 3), 0.5))
    assert [round(float(image.mean()), 4) for image in SliceVolumeColumn(volumes, "image")] == [0.04, 0.01]


def test_all_scans_of_some_subjects_are_held_out_whatever_their_order():
    def held_out(subjects):
        trained, held = hold_out_subjects(Source(subjects), 2)
        names = [{part.source.subject_ids[place] for place in part.places} for part in (trained, held)]
        assert not names[0] & names[1]
        assert (len(trained), len(held)) == (2 * len(subjects) - 4, 4)
        return names[1]

    assert held_out("abcdef") == held_out("fdbace")


def test_at_least_one_subject_is_left_to_train_on():
    with pytest.raises(ValueError, match=r"There are 3 subjects, and 3 are held out .* lower --num_held_out"):
        hold_out_subjects(Source("abc"), 3)
    assert len(hold_out_subjects(Source("abc"), 2)[0]) == 2
