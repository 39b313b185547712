"""Attacks on a generator that is given as a callable: membership inference and extraction of training volumes."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from voxdiff.metrics.copies import Volumes, copy_distances

ReconstructionError = Callable[[torch.Tensor], torch.Tensor]
Sampler = Callable[[list[int]], torch.Tensor]


@dataclass(frozen=True)
class MembershipInference:
    """How well a model's error tells training volumes from held-out ones. Intervals hold 95 % of bootstrap sets.

    Attributes:
        auc: probability that a training volume has a smaller error than a held-out one; 0.5 for no leak.
        auc_interval: of the area.
        true_positive_rate: share of training volumes recognised at the false positive rate (Carlini 2022).
        true_positive_interval: of that share.
        false_positive_rate: share of held-out volumes that are taken for training volumes, at most.
        train_errors: (number of training volumes,).
        heldout_errors: (number of held-out,).
        warnings: what limits the result, one sentence each.
    """

    auc: float
    auc_interval: tuple[float, float]
    true_positive_rate: float
    true_positive_interval: tuple[float, float]
    false_positive_rate: float
    train_errors: np.ndarray
    heldout_errors: np.ndarray
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Clique:
    """Samples nearly equal to one of them, the first, from different seeds.

    Attributes:
        members: indices of the samples, the one that is compared with the training set first.
        nearest_train: index of the training volume nearest to the first member.
        distance: copy distance between the two.
        extracted: whether that is below the threshold: the model gives back a training volume.
    """

    members: tuple[int, ...]
    nearest_train: int
    distance: float
    extracted: bool


@dataclass(frozen=True)
class ExtractionAttack:
    """Cliques among the samples, largest first.

    Attributes:
        cliques: the cliques.
        num_samples: samples drawn.
        num_in_cliques: samples in any clique.
        num_extracted: different training volumes that a clique gives back.
        threshold: copy distance below which two volumes are nearly equal.
    """

    cliques: tuple[Clique, ...]
    num_samples: int
    num_in_cliques: int
    num_extracted: int
    threshold: float


def membership_inference(
    reconstruction_error: ReconstructionError,
    train: torch.Tensor,
    heldout: torch.Tensor,
    *,
    false_positive_rate: float = 0.01,
    batch_size: int = 4,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> MembershipInference:
    """Tell training volumes from held-out ones by the model's error on them.

    Args:
        reconstruction_error: errors (batch,) of volumes (batch, channels, x, y, z), e.g. :func:`denoising_error`.
        train: volumes the model was trained on, (number, channels, x, y, z).
        heldout: volumes it never saw, prepared in the same way.
        false_positive_rate: where the true positive rate is read.
        batch_size: volumes a call.
        num_bootstrap: resampled pairs of sets behind the intervals.
        seed: of the resampling.

    Raises:
        ValueError: fewer than two volumes in a set, a rate out of range, or errors that are not one finite number a
            volume.
    """
    if min(len(train), len(heldout)) < 2 or not 0 < false_positive_rate < 1:
        raise ValueError(
            f"{len(train)} training and {len(heldout)} held-out volumes and a false positive rate of "
            f"{false_positive_rate} were given; give at least 2 of each and a rate in (0, 1)."
        )
    train_errors, heldout_errors = (_errors(reconstruction_error, volumes, batch_size) for volumes in (train, heldout))
    random = np.random.default_rng(seed)
    drawn = [
        _membership(_resampled(train_errors, random), _resampled(heldout_errors, random), false_positive_rate)
        for _ in range(num_bootstrap)
    ]
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    auc, true_positives = _membership(train_errors, heldout_errors, false_positive_rate)
    least = int(np.ceil(1 / false_positive_rate))
    few = len(heldout) < least
    return MembershipInference(
        auc=auc,
        auc_interval=(float(low[0]), float(high[0])),
        true_positive_rate=true_positives,
        true_positive_interval=(float(low[1]), float(high[1])),
        false_positive_rate=false_positive_rate,
        train_errors=train_errors,
        heldout_errors=heldout_errors,
        warnings=(
            f"{len(heldout)} held-out volumes cannot show a false positive rate of {false_positive_rate}; the true "
            f"positive rate is read without any false positive, give at least {least}.",
        )
        if few
        else (),
    )


def denoising_error(
    denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    add_noise: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    timesteps: Sequence[int],
    *,
    seed: int = 0,
) -> ReconstructionError:
    """A diffusion model's error at fixed timesteps, for :func:`membership_inference`.

    A volume's noise depends on the seed, the timestep and the volume's own values, so its error does not depend on its
    place in a batch.

    Args:
        denoise: clean volumes from (noisy volumes, timesteps (batch,)).
        add_noise: noisy volumes from (volumes, noise, timesteps (batch,)), as a diffusers scheduler's `add_noise`.
        timesteps: at which the error is taken; the mean over them is returned.
        seed: of the noise.

    Returns:
        A callable from (batch, channels, x, y, z) to the mean squared error of each volume, (batch,).

    Raises:
        ValueError: no timesteps.
    """
    if not timesteps:
        raise ValueError("No timesteps were given; name at least one.")

    @torch.no_grad()
    def error(volumes: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(len(volumes), dtype=torch.float64)
        for timestep in timesteps:
            noise = torch.stack([_noise_of(volume, timestep, seed) for volume in volumes]).to(volumes)
            batch_timesteps = torch.full((len(volumes),), timestep, device=volumes.device)
            denoised = denoise(add_noise(volumes, noise, batch_timesteps), batch_timesteps)
            total += (denoised - volumes).double().square().flatten(1).mean(dim=1).cpu()
        return total / len(timesteps)

    return error


def extraction_attack(
    sample: Sampler | Volumes,
    train: Volumes,
    *,
    threshold: float,
    num_samples: int = 500,
    seed: int = 0,
    candidates: int = 8,
    device: str | torch.device = "cpu",
) -> ExtractionAttack:
    """Draw many samples, find those that come back from different seeds, and compare them with T (Carlini 2023).

    A model that draws from a distribution does not repeat itself; one that recalls a training volume does. All members
    of a clique lie within the threshold of its first one; a sample is in one clique at most.

    Args:
        sample: volumes (number, channels, x, y, z) from a list of seeds, or the samples themselves.
        train: training volumes on the same grid.
        threshold: copy distance below which two volumes are nearly equal, from held-out volumes:
            :func:`voxdiff.metrics.privacy.copy_threshold`.
        num_samples: seeds given to `sample`, from `seed` on; not used for an array.
        seed: the first.
        candidates: nearest samples that each one is aligned with.
        device: where distances are computed.

    Raises:
        ValueError: fewer than two samples, or a threshold that is not positive.
    """
    samples = sample(list(range(seed, seed + num_samples))) if callable(sample) else sample
    if len(samples) < 2 or not threshold > 0:
        raise ValueError(
            f"{len(samples)} samples and a threshold of {threshold} were given; give at least 2 and a positive one."
        )
    groups = _cliques(samples, threshold, candidates, device)
    cliques = []
    if groups:
        firsts = [samples[group[0]] for group in groups]
        matches = copy_distances(firsts, train, candidates=candidates, device=device)
        for group, nearest, distance in zip(groups, matches.nearest.tolist(), matches.distances.tolist(), strict=True):
            cliques.append(Clique(tuple(group), nearest, distance, distance < threshold))
    return ExtractionAttack(
        cliques=tuple(cliques),
        num_samples=len(samples),
        num_in_cliques=sum(len(clique.members) for clique in cliques),
        num_extracted=len({clique.nearest_train for clique in cliques if clique.extracted}),
        threshold=threshold,
    )


def _cliques(samples: Volumes, threshold: float, candidates: int, device: str | torch.device) -> list[list[int]]:
    """Groups of two and more, largest first."""
    matches = copy_distances(samples, samples, candidates=candidates, exclude_same_index=True, device=device)
    links: dict[int, set[int]] = {index: set() for index in range(len(samples))}
    near = matches.neighbour_distances < threshold
    for first, place in near.nonzero().tolist():
        second = int(matches.neighbours[first, place])
        links[first].add(second)
        links[second].add(first)
    groups = []
    left = set(links)
    while left:
        component = _component(links, left)
        # A chain of near samples is no clique: only those near its best linked member stay together.
        leader = max(component, key=lambda index: (len(links[index] & component), -index))
        others = sorted(component - {leader})
        if others:
            to_leader = copy_distances([samples[i] for i in others], [samples[leader]], device=device).distances
            others = [index for index, far in zip(others, (to_leader >= threshold).tolist(), strict=True) if not far]
        left -= {leader, *others}
        if others:
            groups.append([leader, *others])
    return sorted(groups, key=len, reverse=True)


def _component(links: dict[int, set[int]], left: set[int]) -> set[int]:
    """Everything in `left` that can be reached from its first index."""
    found, frontier = set(), {min(left)}
    while frontier:
        found |= frontier
        frontier = {other for index in frontier for other in links[index] & left} - found
    return found


def _errors(reconstruction_error: ReconstructionError, volumes: torch.Tensor, batch_size: int) -> np.ndarray:
    batches = [reconstruction_error(batch) for batch in volumes.split(batch_size)]
    errors = torch.cat([torch.as_tensor(batch).flatten() for batch in batches]).double().cpu().numpy()
    if len(errors) != len(volumes) or not np.isfinite(errors).all():
        raise ValueError(
            f"The reconstruction error gave {len(errors)} values for {len(volumes)} volumes, or some that are not "
            "finite; return one finite number a volume."
        )
    return errors


def _resampled(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return values[random.integers(len(values), size=len(values))]


def _membership(train: np.ndarray, heldout: np.ndarray, false_positive_rate: float) -> tuple[float, float]:
    """Area under the curve, and the true positive rate at the false positive rate."""
    ordered = np.sort(heldout)
    below, up_to = np.searchsorted(ordered, train, side="left"), np.searchsorted(ordered, train, side="right")
    auc = 1 - (below + up_to).mean() / (2 * len(heldout))
    # Errors below the k-th smallest of the held-out ones have at most k - 1 false positives.
    allowed = ordered[min(int(false_positive_rate * len(ordered)), len(ordered) - 1)]
    return float(auc), float((train < allowed).mean())


def _noise_of(volume: torch.Tensor, timestep: int, seed: int) -> torch.Tensor:
    content = zlib.crc32(volume.detach().float().cpu().contiguous().numpy().tobytes())
    key = [seed, int(timestep), content]
    return torch.from_numpy(np.random.default_rng(key).standard_normal(tuple(volume.shape), dtype=np.float32))
