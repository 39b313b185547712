import pytest
import torch

from voxdiff.training.batches import GlobalBatchSampler, KeyedDataset, SampleNoise, collate, keyed_generator


def sampler(**changes):
    return GlobalBatchSampler(7, **{"global_batch_size": 4, "seed": 3, "last_step": 9, **changes})


def global_batches(samplers, accumulation):
    """Entries of each step, in the order of their place in the global batch."""
    streams = [list(one) for one in samplers]
    steps = range(0, len(streams[0]), accumulation)
    entries = [
        [key for stream in streams for micro in stream[first : first + accumulation] for key in micro]
        for first in steps
    ]
    return [sorted(step, key=lambda key: key[2]) for step in entries]


def test_every_sample_is_seen_once_an_epoch_in_a_new_order():
    indices = [key[0] for micro in sampler(last_step=14) for key in micro]
    epochs = [indices[first : first + 7] for first in range(0, 56, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_the_global_batch_does_not_depend_on_how_it_is_split(processes, accumulation):
    split = [sampler(rank=rank, num_processes=processes, accumulation=accumulation) for rank in range(processes)]
    assert global_batches(split, accumulation) == list(sampler())
    assert all(len(one) == len(list(one)) for one in split)


def test_a_resumed_order_is_the_order_that_was_never_interrupted():
    assert list(sampler(first_step=5)) == list(sampler())[5:]


def test_another_seed_gives_another_order():
    assert list(sampler(seed=4)) != list(sampler())


def test_a_batch_larger_than_the_data_set():
    steps = list(GlobalBatchSampler(3, global_batch_size=8, last_step=3))
    indices = [key[0] for step in steps for key in step]
    assert all(sorted(indices[first : first + 3]) == [0, 1, 2] for first in range(0, 24, 3))


def test_noise_belongs_to_step_and_place_not_to_the_batch():
    whole = SampleNoise(0, {"step": [5, 5], "place": [0, 1]})
    alone = SampleNoise(0, {"step": [5], "place": [1]})
    tensor = torch.zeros(2, 3, 4, 4, 4)
    assert torch.equal(whole.integers(1000)[1:], alone.integers(1000))
    assert torch.equal(whole.uniform()[1:], alone.uniform())
    assert torch.equal(whole.normal_like(tensor)[1:], alone.normal_like(tensor[:1]))


@pytest.mark.parametrize("other", [(1, 5, 0), (0, 6, 0), (0, 5, 1)])
def test_noise_of_another_seed_step_or_place_differs(other):
    def draw(seed, step, place):
        return SampleNoise(seed, {"step": [step], "place": [place]}).normal_like(torch.zeros(1, 1000))

    first, second = draw(0, 5, 0), draw(*other)
    assert abs(torch.corrcoef(torch.cat([first, second]))[0, 1]) < 0.1


def test_noise_has_the_moments_and_the_type_of_what_it_is_for():
    noise = SampleNoise(0, {"step": [0] * 64, "place": list(range(64))})
    draws = noise.normal_like(torch.zeros(64, 500, dtype=torch.bfloat16))
    assert draws.dtype == torch.bfloat16
    assert abs(draws.float().mean()) < 0.03
    assert abs(draws.float().std() - 1) < 0.03
    timesteps = noise.integers(1000)
    assert timesteps.min() >= 0
    assert timesteps.max() < 1000
    assert len(timesteps.unique()) > 50


def test_a_key_is_a_stream():
    assert keyed_generator(1, "order", 2).initial_seed() == keyed_generator(1, "order", 2).initial_seed()
    assert keyed_generator(1, "order", 2).initial_seed() != keyed_generator(12, "order").initial_seed()


def test_items_carry_their_key_and_are_stacked():
    data = KeyedDataset([{"image": torch.full((1, 2), float(index))} for index in range(3)])
    batch = collate([data[2, 8, 0], data[0, 8, 1]])
    assert batch["image"].tolist() == [[[2, 2]], [[0, 0]]]
    assert (batch["step"], batch["place"]) == ([8, 8], [0, 1])


BUCKETS = [[0, 2, 4, 6, 8, 10, 12], [1, 3, 5]]


def bucket_sampler(**changes):
    return GlobalBatchSampler(13, **{"global_batch_size": 2, "seed": 3, "last_step": 14, "buckets": BUCKETS, **changes})


def test_buckets_take_turns_and_the_smaller_one_is_seen_more_often():
    steps = [[key[0] for key in micro] for micro in bucket_sampler()]
    assert all(set(step) <= set(BUCKETS[number % 2]) for number, step in enumerate(steps))
    large, small = ([index for step in steps[number::2] for index in step] for number in range(2))
    assert sorted(large[:7]) == sorted(large[7:]) == BUCKETS[0]
    assert all(sorted(small[first : first + 3]) == BUCKETS[1] for first in range(0, 12, 3))


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (1, 2)])
def test_buckets_do_not_depend_on_how_the_batch_is_split_or_on_a_resumption(processes, accumulation):
    split = [bucket_sampler(rank=rank, num_processes=processes, accumulation=accumulation) for rank in range(processes)]
    assert global_batches(split, accumulation) == list(bucket_sampler())
    assert list(bucket_sampler(first_step=5)) == list(bucket_sampler())[5:]


def test_one_bucket_of_all_is_none():
    assert list(sampler(buckets=[range(7)])) == list(sampler())


def test_an_empty_bucket_is_an_error():
    with pytest.raises(ValueError, match=r"The buckets hold \[7, 0\] samples"):
        bucket_sampler(buckets=[BUCKETS[0], []])
