"""Which slices of a volume are learnt and which are shown at a training step (FDM, arXiv 2205.11495; used by cDPM)."""

from collections.abc import Iterator

import torch

from voxdiff.pipelines.slice_stages import spread_slices
from voxdiff.training.batches import SampleNoise, keyed_generator


class SliceIndexSampler:
    """Draws target and observed slices; all volumes of a step have as many of each, so that no slot is padding.

    The numbers are drawn for the step, by its own stream. Each volume then draws from its own stream until it has those
    numbers, so that without the shares below each follows the distribution of :func:`draw_slice_sets` exactly, and the
    mean of the losses of several processes is the loss of one.

    Args:
        max_slices: Most slices of a volume at a step, targets and observed together (tau_max).
        seed: Seed of the run.
        observed_share: Share of the steps that observe any slice; None is that of FDM, which observes none in two steps of
            three (at 64 slices and 20 at a step).
        gap_share: Share of the steps that learn to fill neighbouring gaps of a comb (:func:`draw_comb`), as a stage of
            z-super-resolution does; none in a volume of fewer than 3 slices.
        comb_share: Share of the steps that learn the first stage of the hierarchical scheme, ``max_slices`` slices spread
            over a volume of which nothing is known. The steps that neither share takes are as above.

    Raises:
        ValueError: If gaps are wanted and ``max_slices`` is below 3, or the two shares make more than 1.
    """

    def __init__(
        self,
        *,
        max_slices: int = 20,
        seed: int = 0,
        observed_share: float | None = None,
        gap_share: float = 0.0,
        comb_share: float = 0.0,
    ) -> None:
        if gap_share + comb_share > 1:
            raise ValueError(
                f"gap_share is {gap_share:g} and comb_share {comb_share:g}, more than 1 together; give less."
            )
        if gap_share and max_slices < 3:
            raise ValueError(
                f"gap_share is {gap_share:g} with {max_slices} slices a step; a gap needs 3, one between two known ones."
            )
        self.max_slices = max_slices
        self.seed = seed
        self.observed_share = observed_share
        self.gap_share = gap_share
        self.comb_share = comb_share

    def draw(self, depth: int, step: int, noise: SampleNoise) -> tuple[torch.Tensor, torch.Tensor]:
        """Slices of each volume of a batch, ascending.

        Args:
            depth: Slices of a volume.
            step: Optimiser step.
            noise: Streams of the volumes.

        Returns:
            Targets ``(batch, targets)`` and observed slices ``(batch, observed)``, on the CPU; the latter may be none.
        """
        of_step = _uniform_numbers(keyed_generator(self.seed, "slice-numbers", step))
        gap_share = self.gap_share if min(depth, self.max_slices) > 2 else 0.0
        kind = next(of_step) if gap_share or self.comb_share else 1.0
        if kind < gap_share:
            comb = draw_comb(depth, self.max_slices, of_step)
            drawn = [place_comb(depth, *comb, _uniform_numbers(generator)) for generator in noise.generators]
        elif kind < gap_share + self.comb_share:
            drawn = [[list(spread_slices(0, depth - 1, min(self.max_slices, depth))), []] for _ in noise.generators]
        else:
            wanted = self._draw_numbers(depth, of_step)
            drawn = [self._draw_as_many(depth, wanted, generator) for generator in noise.generators]
        targets, observed = zip(*drawn, strict=True)
        return torch.tensor(targets), torch.tensor(observed, dtype=torch.long)

    def _draw_numbers(self, depth: int, uniforms: Iterator[float]) -> list[int]:
        """How many targets, how many observed slices."""
        observes = None if self.observed_share is None else depth > 1 and next(uniforms) < self.observed_share
        while True:
            targets, observed = draw_slice_sets(depth, self.max_slices, uniforms)
            if observes is None or bool(observed) == observes:
                return [len(targets), len(observed)]

    def _draw_as_many(self, depth: int, wanted: list[int], generator: torch.Generator) -> list[list[int]]:
        # The mean number of tries is the number of possible pairs of numbers, some 200 for 20 of 64 slices
        uniforms = _uniform_numbers(generator)
        while True:
            drawn = draw_slice_sets(depth, self.max_slices, uniforms)
            if [len(indices) for indices in drawn] == wanted:
                return [sorted(indices) for indices in drawn]


def draw_slice_sets(depth: int, max_slices: int, uniforms: Iterator[float]) -> tuple[set[int], set[int]]:
    """Targets and observed slices of one volume.

    The first spaced slices are targets; each further draw is given to either at even chances, without the slices in
    use, until one would make more than ``max_slices`` or no slice is left.

    Args:
        depth: Slices of the volume.
        max_slices: Most slices in all.
        uniforms: Numbers in ``[0, 1)``.
    """
    targets, observed = draw_spaced_slices(depth, max_slices, uniforms), set[int]()
    while len(targets) + len(observed) < depth:
        chosen = targets if next(uniforms) < 0.5 else observed
        new = draw_spaced_slices(depth, max_slices, uniforms) - targets - observed
        if len(targets) + len(observed) + len(new) > max_slices:
            break
        chosen |= new
    return targets, observed


def draw_spaced_slices(depth: int, max_slices: int, uniforms: Iterator[float]) -> set[int]:
    """Evenly spaced slices, anything from a dense run to a comb over the volume.

    Their number is uniform in 1 ... ``max_slices``, their spacing log-uniform in 1 ... ``depth / (number - 0.999)``, and
    their place uniform among those where all lie in the volume.
    """
    number = 1 + int(next(uniforms) * min(max_slices, depth))
    spacing = (depth / (number - 0.999)) ** next(uniforms)
    offset = next(uniforms) * (depth - spacing * (number - 1))
    # Rounding can lift the last sum to `depth`
    return {min(int(offset + place * spacing), depth - 1) for place in range(number)}


def draw_comb(depth: int, max_slices: int, uniforms: Iterator[float]) -> tuple[int, int, int]:
    """Spacing of an observed comb, how many neighbouring gaps of it are targets, and how many more teeth it has.

    The spacing is log-uniform from 2 to the largest that fits, so that small ones are as frequent as large ones; the
    numbers are uniform among those that fit in the volume and in ``max_slices``.
    """
    widest = min(max_slices, depth) - 1
    spacing = min(int(2 * ((widest + 1) / 2) ** next(uniforms)), widest)
    gaps = 1 + int(next(uniforms) * (widest // spacing))
    most = min(max_slices - gaps * spacing - 1, (depth - 1) // spacing - gaps)
    return spacing, gaps, int(next(uniforms) * (most + 1))


def place_comb(depth: int, spacing: int, gaps: int, more: int, uniforms: Iterator[float]) -> list[list[int]]:
    """Targets in neighbouring gaps of a comb, and its teeth, which are observed, on both sides of them by chance."""
    first = int(next(uniforms) * (depth - spacing * (gaps + more)))
    teeth = list(range(first, first + spacing * (gaps + more) + 1, spacing))
    below = int(next(uniforms) * (more + 1))
    return [sorted(set(range(teeth[below], teeth[below + gaps])) - set(teeth)), teeth]


def _uniform_numbers(generator: torch.Generator) -> Iterator[float]:
    """Endless numbers in ``[0, 1)``, drawn many at a time for speed."""
    while True:
        yield from torch.rand(1024, generator=generator, dtype=torch.float64).tolist()
