"""Which sample is seen when, and with which noise: functions of the seed and the step, never of the process.

The same global batch therefore gives the same run on one process and on several, and a run resumed at step N is the run
that was never interrupted.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler


class GlobalBatchSampler(Sampler[list[tuple[int, int, int]]]):
    """Micro-batches of this process: lists of ``(data set index, step, position in the global batch)``.

    The global batch of a step is the next ``global_batch_size`` entries of an endless chain of permutations. With
    buckets, each has its own chain, and the steps take them in turn: a smaller one is seen more often, so that all get
    as many steps as the largest (multi-resolution training of 3D MedDiffusion).

    Args:
        dataset_size: Samples in the data set.
        global_batch_size: Samples per optimiser step over all processes and micro-batches.
        accumulation: Micro-batches per optimiser step.
        rank: This process.
        num_processes: All processes.
        seed: Seed of the permutations.
        first_step: First optimiser step, when resuming.
        last_step: One past the last optimiser step.
        buckets: Groups of data set indices that can be stacked, such as the samples of one grid; default: one of all.

    Raises:
        ValueError: If a bucket is empty.
    """

    def __init__(
        self,
        dataset_size: int,
        *,
        global_batch_size: int,
        accumulation: int = 1,
        rank: int = 0,
        num_processes: int = 1,
        seed: int = 0,
        first_step: int = 0,
        last_step: int,
        buckets: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.buckets = [range(dataset_size)] if buckets is None else list(buckets)
        if not all(map(len, self.buckets)):
            raise ValueError(f"The buckets hold {[*map(len, self.buckets)]} samples; give at least one to each.")
        self.global_batch_size = global_batch_size
        self.micro_batch_size = global_batch_size // (accumulation * num_processes)
        self.accumulation = accumulation
        self.rank = rank
        self.num_processes = num_processes
        self.seed = seed
        self.steps = range(first_step, last_step)
        self._permutations: dict[tuple[int, int], list[int]] = {}

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for step in self.steps:
            for micro in range(self.accumulation):
                first = (micro * self.num_processes + self.rank) * self.micro_batch_size
                yield [(self._index(step, place), step, place) for place in range(first, first + self.micro_batch_size)]

    def _index(self, step: int, place: int) -> int:
        turn, number = divmod(step, len(self.buckets))
        bucket = self.buckets[number]
        epoch, offset = divmod(turn * self.global_batch_size + place, len(bucket))
        return bucket[self._permutation(number, epoch, len(bucket))[offset]]

    def _permutation(self, number: int, epoch: int, size: int) -> list[int]:
        if (number, epoch) not in self._permutations:
            key = ("order", epoch) if number == 0 else ("order", epoch, "bucket", number)
            order = torch.randperm(size, generator=keyed_generator(self.seed, *key)).tolist()
            recent = {
                key: value for key, value in self._permutations.items() if key[0] != number or key[1] >= epoch - 1
            }
            self._permutations = {**recent, (number, epoch): order}
        return self._permutations[number, epoch]


class KeyedDataset(Dataset):
    """Adds to each item the step and the global position it is drawn for."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        index, step, place = key
        return {**self.dataset[index], "step": step, "place": place}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack the tensors of the items; other values become lists."""
    return {
        name: torch.stack([item[name] for item in items])
        if isinstance(items[0][name], torch.Tensor)
        else [item[name] for item in items]
        for name in items[0]
    }


class SampleNoise:
    """Random draws for a batch, each sample from its own stream keyed by (seed, step, global position).

    Args:
        seed: Seed of the run.
        batch: A collated batch with its ``step`` and ``place`` lists.
    """

    def __init__(self, seed: int, batch: dict[str, Any]) -> None:
        self.generators = [
            keyed_generator(seed, "noise", step, place)
            for step, place in zip(batch["step"], batch["place"], strict=True)
        ]

    def integers(self, high: int) -> torch.Tensor:
        """One integer in ``[0, high)`` per sample, on the CPU."""
        return torch.cat([torch.randint(high, (1,), generator=generator) for generator in self.generators])

    def uniform(self) -> torch.Tensor:
        """One number in ``[0, 1)`` per sample, on the CPU."""
        return torch.cat([torch.rand(1, generator=generator) for generator in self.generators])

    def normal_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Standard normal noise of the shape, dtype and device of a batched tensor."""
        draws = [torch.randn(tensor.shape[1:], generator=generator) for generator in self.generators]
        return torch.stack(draws).to(tensor)


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on the key only."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
