"""The twin network on ellipsoids: it must know subjects again, and not those that it never saw."""

import numpy as np
import pytest
import torch

from voxdiff.metrics.reidentification import (
    Reidentifier,
    pool_volumes,
    reidentify,
    train_reidentifier,
)


def ellipsoids(number: int, seed: int, size: int = 32) -> torch.Tensor:
    """Ellipsoids with a bright core; axes and core are the subject's own: (number, 1, size, size, size) in [0, 1]."""
    random = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    axes = 0.45 + 0.45 * torch.rand((number, 3, 1, 1, 1), generator=random)
    core = 0.1 + 0.6 * torch.rand((number, 1, 1, 1), generator=random)
    radius = (grid / axes).norm(dim=1)
    brightness = 0.5 + 0.5 * torch.sigmoid(25 * (core - radius))
    return (brightness * torch.sigmoid(25 * (1 - radius)))[:, None]


TRAIN, HELDOUT = ellipsoids(12, 1), ellipsoids(24, 2)


@pytest.fixture(scope="module")
def reidentifier() -> Reidentifier:
    return train_reidentifier(TRAIN, steps=40, batch_size=8)


def test_copies_are_recognised_and_heldout_subjects_are_not(reidentifier):
    synthetic = torch.cat([TRAIN[:4].flip(2), TRAIN[4:8].roll(1, 3) * 0.8, HELDOUT[16:]])
    result = reidentify(reidentifier, synthetic, TRAIN, HELDOUT[:16], false_alarm_rate=0.1)
    assert result.verification_auc > 0.9
    assert np.mean(result.nearest[:8] == np.arange(8)) > 0.8
    assert sum(index < 8 for index in result.recognised) >= 4
    assert sum(index >= 8 for index in result.recognised) <= 1
    assert result.share == len(result.recognised) / 16
    assert result.interval[0] < result.share < result.interval[1]
    assert (result.similarities[list(result.recognised)] > result.threshold).all()


def test_the_threshold_keeps_its_false_alarm_rate(reidentifier):
    result = reidentify(reidentifier, HELDOUT, TRAIN, HELDOUT, false_alarm_rate=0.2)
    # 25 places: the 20th score of 24 is exceeded by four.
    assert len(result.recognised) == 4
    assert not any("false alarm" in warning for warning in result.warnings)
    few = reidentify(reidentifier, HELDOUT, TRAIN, HELDOUT, false_alarm_rate=0.01)
    assert few.share == 0 and few.interval == pytest.approx((0, 0.138), abs=1e-3)
    assert "24 held-out volumes cannot show a false alarm rate of 0.01" in few.warnings[0]


def test_a_useless_network_shows_in_its_auc():
    torch.manual_seed(0)
    blind = Reidentifier()
    torch.nn.init.zeros_(blind.head.weight)
    result = reidentify(blind, TRAIN[:2], TRAIN, HELDOUT, false_alarm_rate=0.2)
    assert result.verification_auc == pytest.approx(0.5)
    assert any("AUC of 0.50" in warning for warning in result.warnings)


def test_pairs_of_contrasts_teach_to_match_them(reidentifier):
    inverted = _inverted(TRAIN)
    with_views = train_reidentifier(TRAIN, views=[inverted], steps=80, batch_size=12)
    other = _inverted(HELDOUT)
    result = reidentify(with_views, inverted, TRAIN, HELDOUT, heldout_view=other, false_alarm_rate=0.2)
    blind = reidentify(reidentifier, inverted, TRAIN, HELDOUT, heldout_view=other, false_alarm_rate=0.2)
    assert result.verification_auc > 0.7 > blind.verification_auc + 0.1


def _inverted(volumes: torch.Tensor) -> torch.Tensor:
    """Another contrast: the core dark in a bright shell."""
    return (1.4 - volumes) * (volumes > 0.25)


def test_training_is_decided_by_its_seed_and_leaves_the_global_one(reidentifier):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (train_reidentifier(TRAIN, seed=seed, steps=2, batch_size=4) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    weights = [torch.cat([p.flatten() for p in network.parameters()]) for network in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert len(weights[0]) < 300_000


def test_pooling_gives_ranks_whatever_the_unit():
    pooled = pool_volumes(TRAIN[:2])
    assert pooled.shape == (2, 1, 32, 32, 32) and pooled.min() >= -1 and pooled.max() <= 1
    assert (pooled - pool_volumes(2000 * TRAIN[:2] - 1000)).abs().mean() < 1e-3
    assert pool_volumes(TRAIN[:1, :, :20, :24]).shape == (1, 1, 32, 32, 32)


def test_bad_input_is_named(reidentifier):
    with pytest.raises(ValueError, match="same 2 or more subjects"):
        train_reidentifier(TRAIN, views=[TRAIN[:3]], steps=1)
    with pytest.raises(ValueError, match="1 held-out volumes"):
        reidentify(reidentifier, TRAIN, TRAIN, HELDOUT[:1])
    with pytest.raises(ValueError, match="not finite"):
        pool_volumes(torch.full((1, 1, 32, 32, 32), torch.nan))
