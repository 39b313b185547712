"""Calibration against the cohort's known factors, and what a blur or a change of grid does to the measurements."""

from dataclasses import asdict

import numpy as np
import pytest

from voxdiff.data.cohort import CohortDataset
from voxdiff.metrics.factors import LesionFactors, brain_factors, brain_mask, ct_tissue_fractions, lesion_factors

ndimage = pytest.importorskip("scipy.ndimage")

SPACING = (3.25, 3.25, 3.25)


@pytest.fixture(scope="module")
def subjects():
    cohort = CohortDataset(8, split="val", size=64)
    return [cohort[index] for index in range(len(cohort))]


@pytest.fixture(scope="module")
def measured(subjects):
    return [brain_factors(subject["t1"][0].numpy(), SPACING) for subject in subjects]


def known(subjects, name):
    return np.array([subject["factors"][name] for subject in subjects])


def read(measured, name):
    return np.array([getattr(factors, name) for factors in measured])


@pytest.mark.parametrize(
    ("name", "correlation", "bias_ml"), [("brain_volume_ml", 0.98, 80), ("ventricle_volume_ml", 0.9, 8)]
)
def test_volumes_follow_the_known_ones(subjects, measured, name, correlation, bias_ml):
    truth, reading = known(subjects, name), read(measured, name)
    assert np.corrcoef(truth, reading)[0, 1] > correlation
    assert abs((reading - truth).mean()) < bias_ml


@pytest.mark.parametrize(("name", "label"), [("grey_mean", 2), ("white_mean", 3)])
def test_tissue_intensities_follow_the_labels(subjects, measured, name, label):
    truth = np.array([float(subject["t1"][subject["tissue"] == label].mean()) for subject in subjects])
    assert np.abs(read(measured, name) - truth).max() < 0.05


def test_scale_changes_intensities_only(subjects, measured):
    half = asdict(brain_factors(0.5 * subjects[0]["t1"][0].numpy(), SPACING))
    whole = asdict(measured[0])
    for name in ("brain_volume_ml", "ventricle_volume_ml", "sharpness"):
        assert half[name] == pytest.approx(whole[name], rel=0.01)
    assert half["white_mean"] == pytest.approx(0.5 * whole["white_mean"], rel=0.01)


def test_mirror_changes_nothing(subjects, measured):
    mirrored = asdict(brain_factors(subjects[0]["t1"][0].numpy()[::-1], SPACING))
    assert mirrored == pytest.approx(asdict(measured[0]), rel=1e-3)


def test_blur_lowers_sharpness(subjects, measured):
    for subject, factors in zip(subjects, measured, strict=True):
        blurred = brain_factors(ndimage.gaussian_filter(subject["t1"][0].numpy(), 1.0), SPACING)
        assert blurred.sharpness < 0.85 * factors.sharpness


def test_mask_fills_ventricles_and_drops_specks():
    volume = np.zeros((24, 24, 24), dtype=np.float32)
    volume[4:20, 4:20, 4:20] = 1
    volume[10:13, 10:13, 10:13] = 0
    volume[1, 1, 1] = 1
    mask = brain_mask(volume, (2, 2, 2))
    assert mask[11, 11, 11] and not mask[1, 1, 1] and mask.sum() == 16**3


@pytest.mark.parametrize("volume", [np.zeros((8, 8, 8)), np.ones((8, 8)), np.full((8, 8, 8), np.nan)])
def test_nothing_to_measure_is_refused(volume):
    with pytest.raises(ValueError, match="foreground"):
        brain_factors(volume, SPACING)


def test_ct_fractions():
    volume = np.array([-1000, -500, -100, 40, 60, 400, 900, -1000.0]).reshape(2, 2, 2)
    fractions = ct_tissue_fractions(volume)
    assert fractions == {"air": 0.25, "lung_or_gas": 0.125, "fat": 0.125, "soft_tissue": 0.25, "bone": 0.25}


def test_lesions_by_hand():
    labels = np.zeros((10, 10, 10), dtype=np.uint8)
    labels[1:3, 1:3, 1:3] = 2
    labels[1, 1, 1] = 1
    labels[3, 3, 3] = 3  # touches at a corner
    labels[7:9, 7, 7] = 3
    measured = lesion_factors(labels, (1, 2, 5))
    assert measured == LesionFactors(
        volume_ml=pytest.approx(0.11),
        necrosis_ml=pytest.approx(0.01),
        oedema_ml=pytest.approx(0.07),
        enhancing_ml=pytest.approx(0.03),
        components=2,
        radius_mm=pytest.approx((110 * 3 / (4 * np.pi)) ** (1 / 3)),
    )


def test_no_lesion_measures_zero():
    assert set(asdict(lesion_factors(np.zeros((4, 4, 4)), SPACING)).values()) == {0}


def test_lesions_follow_the_known_ones():
    cohort = CohortDataset(4, split="val", size=32, lesions=True)
    subjects = [cohort[index] for index in range(len(cohort))]
    measured = [lesion_factors(subject["lesion"][0].numpy(), (6.5, 6.5, 6.5)) for subject in subjects]
    truth = known(subjects, "lesion_volume_ml")
    assert np.corrcoef(truth, read(measured, "volume_ml"))[0, 1] > 0.95
    assert np.abs(read(measured, "volume_ml") - truth).mean() < 0.2 * truth.mean()


@pytest.mark.parametrize("labels", [np.full((4, 4, 4), 4), np.zeros((4, 4)), np.full((4, 4, 4), 0.5)])
def test_other_label_maps_are_refused(labels):
    with pytest.raises(ValueError, match="BraTS 2023"):
        lesion_factors(labels, SPACING)
