import numpy as np
import pytest
import torch

from voxdiff.metrics.anchors import ANCHORS
from voxdiff.metrics.fidelity import dot_product_mmd
from voxdiff.metrics.mmd_intervals import mmd_interval
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


def test_the_interval_of_the_mmd_is_that_of_all_pairs_on_the_safe_side():
    reference, other = volumes(20, 0), volumes(20, 100)
    for level, least, most in ((0.5, 1.2, 1.6), (0.8, 0.95, 1.1)):
        synthetic = volumes(30, 200, level=level)
        found = measure(synthetic)["mmd_dot_product"]["synthetic"]
        real = [*reference, *other]
        assert found["value"] == pytest.approx(dot_product_mmd(real, synthetic), abs=1e-9)
        rows = [np.stack([volume.numpy().ravel() - level / 2 for volume in group]) for group in (real, synthetic)]
        exact = mmd_interval(*rows, kernel=lambda first, second: 1000 * first @ second.T / first.shape[1])
        assert least < (found["high"] - found["low"]) / (exact.high - exact.low) < most


def test_all_anchors_stand_beside_the_set():
    found = measure(volumes(20, 200))
    for measured in ("ms_ssim", "toy", "mmd_dot_product"):
        assert set(found[measured]) == {"synthetic", *ANCHORS}
    assert found["ms_ssim"]["mean image"] == found["ms_ssim"]["one repeated"] == {"value": 1.0}
    assert found["toy"]["mean image"] == found["toy"]["one repeated"] == {"value": 0.0}
    mmd = {name: row["value"] for name, row in found["mmd_dot_product"].items()}
    assert abs(mmd["mean image"]) < 5 < mmd["one repeated"]
    lines = markdown(found).splitlines()
    assert [line for line in lines if line.startswith(("| mean image | 1.000 | 0.0000 |", "| one repeated | 1.000 |"))]


def test_intervals_stay_in_the_possible_range():
    copies = volumes(1, 7) * 4
    found = measure([*copies, *volumes(3, 50)])
    assert found["ms_ssim"]["synthetic"]["high"] == 1 and found["toy"]["synthetic"]["low"] == 0


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
