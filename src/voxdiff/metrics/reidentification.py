"""Can a network that knows subjects apart recognise a training subject in a synthetic volume? (Packhäuser 2022)

A twin network learns on the training set which two volumes show the same subject: in another contrast where the set has
one, and otherwise under noise and another pose; intensities are ranks, which no linear map changes.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from voxdiff.metrics.copies import rank_features

_CELLS = 32
_TEMPERATURE = 0.1
_MAX_ROTATION, _MAX_SHIFT = 0.12, 0.08  # radians, share of the field of view
_MAX_NOISE = 0.12  # standard deviation, in ranks
_LEARNING_RATE = 2e-3
_Z95 = 1.959964


@dataclass(frozen=True)
class Reidentification:
    """How many synthetic volumes are recognised as someone in the training set.

    Attributes:
        share: of the synthetic volumes whose best match in T exceeds the threshold.
        interval: 95 % Wilson interval of the share.
        recognised: indices of those volumes.
        nearest: (number,) index of each volume's best match in T.
        similarities: (number,) cosine with it.
        threshold: cosine that at most `false_alarm_rate` of the held-out volumes exceed.
        false_alarm_rate: the rate asked for.
        verification_auc: probability that the network scores a pair of one held-out subject above a pair of two; near
            0.5 the network is useless and the share means nothing.
        warnings: what limits the result, one sentence each.
    """

    share: float
    interval: tuple[float, float]
    recognised: tuple[int, ...]
    nearest: np.ndarray
    similarities: np.ndarray
    threshold: float
    false_alarm_rate: float
    verification_auc: float
    warnings: tuple[str, ...]


class Reidentifier(nn.Module):
    """Embeds a volume, pooled to 32³, as a direction in 64 dimensions: near for one subject. 0.24 M parameters.

    Args:
        channels: of the volumes.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        widths = (channels, 12, 24, 48)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv3d(low, high, 3, stride=2, padding=1), nn.GroupNorm(4, high), nn.SiLU())
                for low, high in itertools.pairwise(widths)
            )
        )
        self.head = nn.Linear(48 * (_CELLS // 8) ** 3, 64)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(batch, channels, 32, 32, 32) in [-1, 1] to (batch, 64) of norm 1."""
        return F.normalize(self.head(self.blocks(pooled).flatten(1)), dim=1)

    @torch.no_grad()
    def embed(self, pooled: torch.Tensor, *, batch_size: int = 32) -> torch.Tensor:
        """Embeddings (number, 64) of :func:`pool_volumes`, on the CPU."""
        device = self.head.weight.device
        return torch.cat([self(batch.to(device)).cpu() for batch in pooled.split(batch_size)])


def pool_volumes(volumes: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """What the network sees: the ranks of intensities within the foreground, averaged on a grid of 32³ cells.

    Args:
        volumes: (number, channels, x, y, z), or any sequence of (channels, x, y, z), which is read one by one.

    Returns:
        (number, channels, 32, 32, 32) in [-1, 1], 0 in the background.

    Raises:
        ValueError: no volumes, or values that are not finite.
    """
    loaded = [volumes[index] for index in range(len(volumes))]
    if not loaded or not all(torch.isfinite(volume).all() for volume in loaded):
        raise ValueError(
            f"{len(loaded)} volumes were given, or some that are not finite; give at least one finite one."
        )
    return torch.stack([F.adaptive_avg_pool3d(rank_features(volume), _CELLS) for volume in loaded])


def train_reidentifier(
    volumes: torch.Tensor | Sequence[torch.Tensor],
    *,
    views: Sequence[torch.Tensor | Sequence[torch.Tensor]] | None = None,
    seed: int = 0,
    steps: int = 600,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
) -> Reidentifier:
    """Train the twin network with the normalised temperature-scaled cross entropy (Chen 2020).

    Args:
        volumes: the training set, (number, channels, x, y, z) or a sequence of (channels, x, y, z).
        views: further volumes of the same subjects in the same order, such as other contrasts; None makes pairs by
            noise and pose alone.
        seed: of the weights and of the pairs.
        steps: of the optimiser.
        batch_size: subjects a step; each is told from the others.
        device: where to train.

    Raises:
        ValueError: fewer than two subjects, a view with another number of subjects, or settings below 1.
    """
    pools = [pool_volumes(view) for view in (volumes, *(views or ()))]
    count = len(pools[0])
    if min(count, batch_size) < 2 or steps < 1 or any(pool.shape != pools[0].shape for pool in pools):
        raise ValueError(
            f"Views of {[len(pool) for pool in pools]} subjects, {steps} steps and {batch_size} subjects a step were given; "
            "give the same 2 or more subjects and channels in each view, at least 1 step and 2 subjects a step."
        )
    stacked = torch.stack(pools).to(device)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Reidentifier(stacked.shape[2]).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps + 1)
    for _ in range(steps):
        subjects = torch.randperm(count, generator=generator)[:batch_size]
        first = torch.randint(len(pools), (len(subjects),), generator=generator)
        # The other view of a pair is another one wherever there is another one.
        second = (
            first + torch.randint(min(1, len(pools) - 1), max(2, len(pools)), first.shape, generator=generator)
        ) % (len(pools))
        pair = torch.cat([stacked[first, subjects], stacked[second, subjects]])
        loss = _contrastive_loss(network(_another_look(pair, generator)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def reidentify(
    reidentifier: Reidentifier,
    synthetic: torch.Tensor | Sequence[torch.Tensor],
    train: torch.Tensor | Sequence[torch.Tensor],
    heldout: torch.Tensor | Sequence[torch.Tensor],
    *,
    false_alarm_rate: float = 0.01,
    heldout_view: torch.Tensor | Sequence[torch.Tensor] | None = None,
    seed: int = 0,
) -> Reidentification:
    """Share of the synthetic volumes that the network takes for someone in the training set.

    Args:
        reidentifier: trained on the training set.
        synthetic: (number, channels, x, y, z), or a sequence of (channels, x, y, z); the others alike.
        train: the training set.
        heldout: subjects that neither the generator nor the network saw.
        false_alarm_rate: share of the held-out volumes that may be taken for someone in T.
        heldout_view: another contrast of the held-out subjects for the verification; None pairs other looks.
        seed: of those looks.

    Raises:
        ValueError: an empty set, fewer than two held-out volumes, or a rate out of range.
    """
    if len(heldout) < 2 or not 0 < false_alarm_rate < 1:
        raise ValueError(
            f"{len(heldout)} held-out volumes and a false alarm rate of {false_alarm_rate} were given; give at least 2 "
            "and a rate in (0, 1)."
        )
    pooled_heldout = pool_volumes(heldout)
    known = reidentifier.embed(pool_volumes(train))
    best = (reidentifier.embed(pool_volumes(synthetic)) @ known.T).max(dim=1)
    false_scores = (reidentifier.embed(pooled_heldout) @ known.T).amax(dim=1).sort().values
    # The k-th smallest of n scores is exceeded by a new one with probability 1 - k / (n + 1).
    place = int(np.ceil((1 - false_alarm_rate) * (len(false_scores) + 1)))
    threshold = float(false_scores[min(place, len(false_scores)) - 1])
    recognised = torch.nonzero(best.values > threshold).flatten().tolist()
    warnings = []
    if place > len(false_scores):
        warnings.append(
            f"{len(false_scores)} held-out volumes cannot show a false alarm rate of {false_alarm_rate}; the threshold is "
            f"their highest score, with a rate of {1 / (len(false_scores) + 1):.3f}."
        )
    auc = _verification_auc(reidentifier, pooled_heldout, heldout_view, seed)
    if auc < 0.9:
        warnings.append(
            f"The network tells held-out subjects apart with an AUC of {auc:.2f} only; train it for longer."
        )
    return Reidentification(
        share=len(recognised) / len(best.values),
        interval=_wilson_interval(len(recognised), len(best.values)),
        recognised=tuple(recognised),
        nearest=best.indices.numpy(),
        similarities=best.values.double().numpy(),
        threshold=threshold,
        false_alarm_rate=false_alarm_rate,
        verification_auc=auc,
        warnings=tuple(warnings),
    )


def _another_look(pooled: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random pose, mirroring and noise, another for each of (number, channels, 32, 32, 32)."""
    count = len(pooled)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return (low + (high - low) * torch.rand(shape, generator=generator)).to(pooled.device)

    angles = uniform(-_MAX_ROTATION, _MAX_ROTATION, count, 3)
    skew = torch.zeros(count, 3, 3, device=pooled.device)
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = angles.T
    rotation = torch.linalg.matrix_exp(skew - skew.transpose(1, 2))
    mirror = torch.where(uniform(0, 1, count, 3) < 0.5, -1.0, 1.0)
    # Positions run from -1 to 1, so that a share of the field of view counts twice.
    shift = uniform(-2 * _MAX_SHIFT, 2 * _MAX_SHIFT, count, 3, 1)
    grid = F.affine_grid(torch.cat([rotation * mirror[:, None], shift], dim=2), list(pooled.shape), align_corners=False)
    moved = F.grid_sample(pooled, grid, align_corners=False, padding_mode="border")
    noise = torch.randn(moved.shape, generator=generator).to(pooled.device)
    return moved + uniform(0, _MAX_NOISE, count, 1, 1, 1, 1) * noise


def _contrastive_loss(embeddings: torch.Tensor) -> torch.Tensor:
    """Row i and row i + half are one subject; every other row is another one."""
    count = len(embeddings)
    similarities = embeddings @ embeddings.T / _TEMPERATURE
    similarities = similarities.masked_fill(torch.eye(count, dtype=torch.bool, device=embeddings.device), -torch.inf)
    partners = torch.arange(count, device=embeddings.device).roll(count // 2)
    return F.cross_entropy(similarities, partners)


def _verification_auc(
    reidentifier: Reidentifier,
    pooled: torch.Tensor,
    view: torch.Tensor | Sequence[torch.Tensor] | None,
    seed: int,
) -> float:
    generator = torch.Generator().manual_seed(seed)
    other = pooled if view is None else pool_volumes(view)
    looks = [reidentifier.embed(_another_look(item, generator)) for item in (pooled, other)]
    scores = looks[0] @ looks[1].T
    same = scores.diagonal()
    different = scores[~torch.eye(len(scores), dtype=torch.bool)]
    above = (same[:, None] > different).double() + 0.5 * (same[:, None] == different)
    return float(above.mean())


def _wilson_interval(count: int, total: int) -> tuple[float, float]:
    share, squared = count / total, _Z95**2 / total
    centre = (share + squared / 2) / (1 + squared)
    half = _Z95 * np.sqrt(share * (1 - share) / total + squared / (4 * total)) / (1 + squared)
    return float(max(centre - half, 0.0)), float(min(centre + half, 1.0))
