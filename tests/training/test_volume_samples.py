import pytest
import torch

from voxdiff.training.class_sources import VolumeSource
from voxdiff.training.volume_samples import hold_out
from voxdiff.volumes import VolumeProcessor


class Numbered:
    """Volumes whose voxels are their number."""

    def __init__(self, count, size):
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"t1": torch.full((1, *self.size), float(index))}


def make_source(count, size, name=None):
    processor = VolumeProcessor(size=size, spacing=(1, 1, 1), intensity="minmax")
    dataset = Numbered(count, size)
    return VolumeSource(dataset, processor, keys=[str(i) for i in range(count)], scalars=[{}] * count, class_name=name)


def numbers(volumes):
    return [int(volume.max()) for volume in volumes]


def test_some_of_each_source_are_held_out_the_same_of_each():
    sources = [make_source(10, (8, 8, 8), "a"), make_source(10, (8, 8, 4), "b")]
    samples, held_out = hold_out(sources, 3)
    trained = numbers(samples[index]["volume"] for index in range(len(samples)))
    held = numbers(held_out[index] for index in range(len(held_out)))
    assert sorted(trained[:7] + held[:3]) == list(range(10))
    assert trained[:7] == trained[7:] and held[:3] == held[3:]
    assert held[:3] != [0, 1, 2]
    again, _ = hold_out(sources, 3)
    assert [place for _, place in again.places] == [place for _, place in samples.places]


def test_what_can_be_stacked_is_a_bucket():
    sources = [make_source(3, (8, 8, 8), "a"), make_source(4, (8, 8, 4)), make_source(3, (8, 8, 8), "b")]
    samples, _ = hold_out(sources, 1)
    assert samples.buckets == [[0, 1, 5, 6], [2, 3, 4]]
    for bucket in samples.buckets:
        assert len({samples[index]["volume"].shape for index in bucket}) == 1


def test_nothing_left_to_train_on_is_refused():
    with pytest.raises(ValueError, match=r"There are 3 volumes .* 3 are held out .*lower --num_held_out"):
        hold_out([make_source(3, (8, 8, 8))], 3)
