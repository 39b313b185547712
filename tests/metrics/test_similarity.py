"""MS-SSIM and nearest neighbours of sets with known answers."""

import pytest
import torch

from voxdiff.metrics.similarity import ms_ssim, nearest_distances, pairwise_ms_ssim


def test_equal_volumes_score_one_and_noise_less():
    volume = torch.rand(1, 1, 24, 24, 24)
    settings = {"scales": 2, "kernel_size": 5}
    assert ms_ssim(volume, volume, **settings).item() == pytest.approx(1.0, abs=1e-6)
    slight = ms_ssim(volume, volume + 0.05 * torch.randn_like(volume), **settings).item()
    strong = ms_ssim(volume, volume + 0.3 * torch.randn_like(volume), **settings).item()
    assert strong < slight < 1


def test_pairs_are_drawn_without_repetition_from_a_seed():
    volumes = torch.rand(4, 1, 12, 12, 12)
    settings = {"scales": 1, "kernel_size": 3}
    every = pairwise_ms_ssim(volumes, **settings)
    some = pairwise_ms_ssim(volumes, max_pairs=3, seed=1, **settings)
    assert len(every) == 6 and len(some) == 3 and len(some.unique()) == 3
    assert torch.isin(some, every).all()
    assert torch.equal(some, pairwise_ms_ssim(volumes, max_pairs=3, seed=1, **settings))


def test_one_volume_has_no_pairs():
    with pytest.raises(ValueError, match="at least 2"):
        pairwise_ms_ssim(torch.rand(1, 1, 8, 8, 8))


def test_a_copy_is_found_at_distance_zero_and_noise_near_it():
    references = torch.rand(5, 1, 8, 8, 8)
    distances, nearest = nearest_distances(references[[3, 1]], references)
    assert nearest.tolist() == [3, 1] and distances.tolist() == [0, 0]
    shifted, nearest = nearest_distances(references[[2]] + 0.25, references)
    assert nearest.tolist() == [2] and shifted.item() == pytest.approx(0.25, abs=1e-6)
