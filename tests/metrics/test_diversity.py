import numpy as np
import pytest
import torch

from voxdiff.metrics.perceptual import PerceptualBackbone
from voxdiff.metrics.sections.diversity import markdown, measure_diversity

SETTINGS = {"scales": 1, "kernel_size": 5, "sigma": 1.0, "data_range": 1.0}
BACKBONE = PerceptualBackbone("toy", lambda images: [images], None, "0" * 64, torch.device("cpu"))


def volumes(number, first, level=0.5):
    random = [np.random.default_rng(seed) for seed in range(first, first + number)]
    return [torch.from_numpy(level * generator.random((1, 8, 8, 8), dtype=np.float32)) for generator in random]


def measure(synthetic):
    reference, other = volumes(20, 0), volumes(20, 100)
    return measure_diversity(
        [*reference, *other], synthetic, reference, other, max_pairs=12, ms_ssim_settings=SETTINGS, perceptual=BACKBONE
    )


def test_the_floor_of_the_mmd_is_near_zero_and_a_brighter_set_is_far():
    found = measure(volumes(20, 200, level=0.8))["mmd_dot_product"]
    assert abs(found["real"]["value"]) < 0.02 * found["synthetic"]["value"]


def test_one_volume_repeated_is_without_diversity():
    found = measure([volumes(1, 7)[0]] * 10)
    assert found["ms_ssim"]["synthetic"]["value"] == pytest.approx(1) and found["toy"]["synthetic"]["value"] == 0
    assert found["ms_ssim"]["real"]["high"] < 0.5 < found["ms_ssim"]["synthetic"]["low"]
    assert "| synthetic | 1.000" in markdown(found)


def test_pairs_are_intervals_over_volumes_and_counted():
    ticks = []
    reference = volumes(6, 0)
    found = measure_diversity(
        *(reference, volumes(5, 50), reference[:3], reference[3:]),
        max_pairs=12,
        ms_ssim_settings=SETTINGS,
        perceptual=BACKBONE,
        on_pair=lambda: ticks.append(1),
    )
    assert len(ticks) == 10 + 12 + 12
    assert found["ms_ssim"]["synthetic"]["low"] < found["ms_ssim"]["synthetic"]["value"]
