import nibabel as nib
import numpy as np
import pytest
import torch
from resampling_runs import AFFINE, make_case, make_cases
from scipy.ndimage import gaussian_filter

from voxdiff import VolumeProcessor
from voxdiff.volume_files import make_image
from voxdiff.workflows.enhancement_filter import MaskAgreementFilter, MemorisationFilter, OutlierFilter, require_able
from voxdiff.workflows.masked_cases import MaskedCase

PROCESSOR = VolumeProcessor(intensity="window", low=0.0, high=1.0, unit="a.u.")


def image_of(values):
    return make_image(np.asarray(values, np.float32), AFFINE, unit="a.u.")


def bright_voxels(image):
    return (np.asarray(image.dataobj) > 0.95).astype(np.uint8)


def test_agreement_is_the_dice_of_one_region():
    case = make_case("a", brightness=0.5)
    tumour = MaskAgreementFilter(bright_voxels, threshold=0.9, labels=[1])
    verdict = tumour(case.image, case.mask)
    assert verdict.value > 0.95 and not verdict.rejected and verdict.reason is None
    whole = MaskAgreementFilter(bright_voxels, threshold=0.9)(case.image, case.mask)
    assert whole.rejected and "Dice with the mask is 0.5" in whole.reason and "below 0.9" in whole.reason
    nothing = tumour(image_of(np.zeros(case.image.shape)), case.mask)
    assert nothing.value == 0 and nothing.rejected


def test_a_missing_tumour_is_not_hidden_by_the_brain_around_it():
    case = make_case("a")
    brain_alone = MaskAgreementFilter(lambda image: np.where(np.asarray(case.mask.dataobj) > 0, 4, 0))
    assert brain_alone(case.image, case.mask).value < 0.5


def test_a_segmenter_that_fails_on_real_images_judges_no_others():
    cases = make_cases(3)
    require_able(MaskAgreementFilter(bright_voxels, labels=[1], threshold=0.9), cases)
    blind = MaskAgreementFilter(lambda image: np.zeros(image.shape), threshold=0.1)
    with pytest.raises(
        ValueError, match=r"masks of 3 real images is 0\.000, below the 0\.1 .*; train one longer, into"
    ):
        require_able(blind, cases)


def test_what_was_not_asked_for_counts_against_the_agreement():
    healthy = make_image(np.zeros((4, 4, 4), np.uint8), AFFINE, unit="label")
    judge = MaskAgreementFilter(lambda image: np.ones((4, 4, 4), np.uint8))
    assert judge(image_of(np.zeros((4, 4, 4))), healthy).value == 0
    silent = MaskAgreementFilter(lambda image: np.zeros((4, 4, 4), np.uint8))
    assert silent(image_of(np.zeros((4, 4, 4))), healthy).value == 1


def test_a_stray_voxel_of_a_region_that_was_not_asked_for_is_no_disagreement():
    case = make_case("a")
    tumour = MaskAgreementFilter(bright_voxels, labels=[1])
    healthy = make_image(np.where(np.asarray(case.mask.dataobj) > 0, 4, 0).astype(np.uint8), AFFINE, unit="label")
    stray = np.zeros(healthy.shape)
    stray[0, 0, 0] = 1
    assert 0.99 < tumour(image_of(stray), healthy).value < 1
    assert tumour(image_of(np.ones(healthy.shape)), healthy).rejected


def test_a_segmenter_is_known_by_its_fingerprint_or_its_name():
    class Known:
        fingerprint = "abc"

    assert MaskAgreementFilter(Known()).settings()["segmenter"] == "abc"
    assert MaskAgreementFilter(bright_voxels).settings()["segmenter"] == "bright_voxels"


def textured(place, shape=(16, 16, 16)):
    """A ball of its own texture."""
    random = np.random.default_rng(place)
    axes = np.meshgrid(*(np.linspace(-1, 1, count) for count in shape), indexing="ij")
    ball = sum(axis**2 for axis in axes) < 0.8
    coarse = np.kron(random.random((4, 4, 4)), np.ones((4, 4, 4)))
    return image_of(np.where(ball, 0.3 + 0.6 * coarse, 0))


@pytest.fixture(scope="module")
def real():
    return [
        make_case(f"s{place}", name=f"s{place}").__class__(f"s{place}", textured(place), textured(place))
        for place in range(8)
    ]


def test_a_copy_is_rejected_and_named(real):
    judge = MemorisationFilter(real, PROCESSOR)
    copy = np.asarray(real[3].image.dataobj)[::-1] * 0.9
    verdict = judge(image_of(copy), real[3].mask)
    assert verdict.rejected and verdict.value < 0.3 and verdict.details["nearest_subject"] == "s3"
    assert "as far from s3 as from other images" in verdict.reason
    new = judge(textured(100), real[3].mask)
    assert not new.rejected and new.value > 0.8


def test_what_was_asked_of_copies_is_recorded(real):
    given = MemorisationFilter(real, PROCESSOR, threshold=0.99)
    assert given.settings()["threshold"] == 0.99
    assert (
        given.settings()["references"]
        != MemorisationFilter(real[1:], PROCESSOR, threshold=0.99).settings()["references"]
    )
    found = MemorisationFilter(real, PROCESSOR, false_alarm_rate=0.01)
    assert 0 < found.threshold < 1 and found.settings()["false_alarm_rate"] == 0.01


def test_scans_of_one_subject_do_not_lower_the_threshold_of_copies(real):
    again = [MaskedCase(case.subject, case.image, case.mask, f"{case.name}-2") for case in real]
    twice = MemorisationFilter([*real, *again], PROCESSOR)
    once = MemorisationFilter(real, PROCESSOR)
    assert twice.threshold == pytest.approx(once.threshold)
    copy = image_of(np.asarray(real[3].image.dataobj)[::-1] * 0.9)
    assert twice(copy, None).value == pytest.approx(once(copy, None).value) and twice(copy, None).rejected


def test_an_unlike_intensity_is_an_outlier():
    judge = OutlierFilter(make_cases(8, brightness=0.5), PROCESSOR)
    assert not judge(make_case("new", seed=50, brightness=0.5).image, None).rejected
    dark = judge(make_case("new", seed=50, brightness=0.1).image, None)
    assert dark.rejected and "robust standard deviations from the real images'" in dark.reason
    flickering = np.asarray(make_case("new", seed=50, brightness=0.5).image.dataobj).copy()
    flickering[..., ::2] *= 0.6
    assert (
        judge(image_of(flickering), None).value > 2 * judge(make_case("n", seed=50, brightness=0.5).image, None).value
    )


def test_a_blurred_volume_is_an_outlier_by_its_sharpness():
    judge = OutlierFilter([MaskedCase(f"s{place}", textured(place), None) for place in range(8)], PROCESSOR)
    new = np.asarray(textured(50).dataobj)
    assert not judge(image_of(new), None).rejected
    verdict = judge(image_of(gaussian_filter(new, 0.7)), None)
    assert verdict.rejected and verdict.details["statistic"] == "sharpness"


def test_what_an_autoencoder_smooths_is_no_outlier_beside_reconstructions():
    def smooth(volume):
        return torch.from_numpy(gaussian_filter(volume.numpy(), (0, 0.7, 0.7, 0)))

    cases = [MaskedCase(f"s{place}", textured(place), None) for place in range(8)]
    new = np.asarray(textured(50).dataobj)
    decoded, flat = image_of(gaussian_filter(new, (0.7, 0.7, 0))), image_of(gaussian_filter(new, 2))
    judge = OutlierFilter(cases, PROCESSOR, reconstruct=smooth)
    assert OutlierFilter(cases, PROCESSOR)(decoded, None).rejected and not judge(decoded, None).rejected
    assert judge(flat, None).rejected and judge.settings()["reconstructed"]


def test_ct_in_hu_is_read_as_such():
    processor = VolumeProcessor(intensity="window", low=-1000, high=1000, unit="HU")
    cases = [
        type(case)(case.subject, make_image(np.asarray(case.image.dataobj) * 500, AFFINE), case.mask)
        for case in make_cases(5)
    ]
    assert not OutlierFilter(cases, processor, threshold=100)(cases[0].image, None).rejected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskAgreementFilter(bright_voxels, threshold=2), "mask agreement is 2"),
        (lambda: MaskAgreementFilter(bright_voxels, labels=[0, 1]), "all above 0"),
        (lambda: MemorisationFilter(make_cases(5), PROCESSOR), "5 real images of 5 subjects; it needs 3 subjects"),
        (lambda: MemorisationFilter(make_cases(2), PROCESSOR, threshold=0.5), "2 real images"),
        (lambda: MemorisationFilter(make_cases(5), PROCESSOR, threshold=0), "memorisation filter is 0"),
        (lambda: OutlierFilter(make_cases(4), PROCESSOR), "4 real images"),
        (lambda: OutlierFilter(make_cases(5), PROCESSOR, threshold=0), "threshold 0"),
        (lambda: MemorisationFilter([*make_cases(5), make_case("x", shape=(8, 8, 8))], PROCESSOR), "different grids"),
    ],
)
def test_bad_settings_are_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_filters_take_files(tmp_path):
    cases = [make_case(f"s{place}", seed=place, folder=tmp_path) for place in range(5)]
    verdict = OutlierFilter(cases, PROCESSOR)(nib.load(cases[0].image), None)
    assert verdict.to_dict()["filter"] == "outlier"
