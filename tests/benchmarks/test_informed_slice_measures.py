import numpy as np
import pytest
import torch
from informed_slice_measures import (
    SLICES,
    jump_ratios,
    make_reference,
    measure_cases,
    measure_diversity,
    plane_features,
)
from informed_slice_records import measured_set

from voxdiff.metrics.perceptual import load_perceptual


@pytest.fixture(scope="module")
def volumes():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 48, 48, 48, generator=generator) for _ in range(3)]


def test_jumps_are_counted_at_the_seams_and_elsewhere():
    smooth = torch.arange(6.0).expand(2, 2, 6)
    broken = smooth + 3.0 * (torch.arange(6) > 2)
    ratios = jump_ratios(broken, [2], np.ones(5))
    assert ratios == {"jump": pytest.approx(1.0), "seam": pytest.approx(4.0)}
    assert jump_ratios(smooth, [], 2 * np.ones(5)) == {"jump": pytest.approx(0.5)}


def test_a_copy_of_the_real_volume_is_at_no_distance(volumes):
    reference = make_reference({"a": volumes[0], "b": volumes[1]}, load_perceptual())
    same, other = measure_cases(volumes[:2], ["a", "a"], [], reference, paired=True)
    assert same["ms_ssim"] == pytest.approx(1.0) and same["perceptual"] == pytest.approx(0.0, abs=1e-6)
    assert other["ms_ssim"] < 0.9 and other["perceptual"] > 0.01
    (unpaired,) = measure_cases(volumes[:1], ["a"], [20], reference, paired=False)
    assert set(unpaired) == {"case", "jump", "seam"}


def test_a_set_of_copies_has_no_diversity(volumes):
    assert measure_diversity([volumes[0]] * 3)["mean"] == pytest.approx(1.0)
    assert measure_diversity(volumes)["mean"] < 0.9


def test_features_come_volume_by_volume(volumes):
    features = plane_features(volumes)
    assert {plane: len(values) for plane, values in features.items()} == dict.fromkeys(features, 3 * SLICES)
    alone = plane_features(volumes[1:2])["axial"]
    np.testing.assert_allclose(features["axial"][SLICES : 2 * SLICES], alone, atol=1e-4)


def test_measurements_are_kept_and_bound_to_their_model(tmp_path, volumes):
    reference = make_reference(dict(zip("abc", volumes, strict=True)), load_perceptual())
    made = measured_set(tmp_path, "IC", lambda: volumes, "abc", reference, protocol={"model": "1"})

    def unread():
        raise AssertionError("the volumes were read again")

    again = measured_set(tmp_path, "IC", unread, "abc", reference, protocol={"model": "1"})
    assert again["cases"] == made["cases"]
    np.testing.assert_array_equal(again["features"]["axial"], made["features"]["axial"])
    with pytest.raises(ValueError, match="another model or other cases"):
        measured_set(tmp_path, "IC", unread, "abc", reference, protocol={"model": "2"})
