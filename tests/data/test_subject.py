import numpy as np
import pytest
import torch

from voxdiff.data import subject as subject_module
from voxdiff.data.deformation import voxel_centres
from voxdiff.data.subject import MR_LEVELS, make_subject

CONTRASTS = ("t1", "t1gd", "t2", "flair")


@pytest.fixture(scope="module")
def plain():
    return make_subject(0, contrasts=CONTRASTS)


@pytest.fixture(scope="module")
def with_lesion():
    return make_subject(0, contrasts=CONTRASTS, lesions=True)


def test_a_seed_is_one_subject(plain):
    again = make_subject(0, contrasts=CONTRASTS)
    assert plain.factors == again.factors
    for name, image in plain.images.items():
        assert torch.equal(image, again.images[name])
    assert torch.equal(plain.labels["tissue"], again.labels["tissue"])
    other = make_subject(1)
    assert other.factors != plain.factors
    assert float((other.images["t1"] - plain.images["t1"]).abs().mean()) > 0.02


def test_images_are_12_bit_float32_in_0_1_and_0_outside(plain):
    assert tuple(plain.images) == CONTRASTS
    for image in plain.images.values():
        assert image.dtype == torch.float32
        assert image.shape == (64, 64, 64)
        assert float(image.min()) == 0
        assert float(image.max()) <= 1
        steps = image.double() * MR_LEVELS
        assert float((steps - steps.round()).abs().max()) < 1e-3
        assert not image[plain.labels["tissue"] == 0].any()
        assert float(image[plain.labels["tissue"] > 0].mean()) > 0.2


def test_one_is_the_995th_percentile_of_the_brain(plain):
    for name in ("t1", "t2"):
        inside = plain.images[name][plain.labels["tissue"] > 0]
        assert float((inside >= 1).float().mean()) == pytest.approx(0.005, abs=0.001)


def test_affine_is_in_mm_and_centred(plain):
    assert np.allclose(np.diag(plain.affine), [3.25, 3.25, 3.25, 1])
    assert np.allclose(plain.affine @ [31.5, 31.5, 31.5, 1], [0, 0, 0, 1])
    abdomen = make_subject(0, size=32, modality="ct")
    assert np.allclose(np.diag(abdomen.affine), [12, 12, 12, 1])
    assert np.allclose(abdomen.affine @ [15.5, 15.5, 15.5, 1], [0, 0, 0, 1])
    assert (plain.unit, abdomen.unit) == ("a.u.", "HU")


@pytest.mark.parametrize("contrasts", [("t1",), ("t2",), ("flair", "t1")])
def test_asking_for_other_contrasts_leaves_the_patient_bit_for_bit(plain, contrasts):
    fewer = make_subject(0, contrasts=contrasts)
    assert tuple(fewer.images) == contrasts
    for name in contrasts:
        assert torch.equal(fewer.images[name], plain.images[name])
    assert torch.equal(fewer.labels["tissue"], plain.labels["tissue"])
    assert fewer.factors == plain.factors


def test_adding_a_lesion_leaves_the_patient(plain, with_lesion):
    assert plain.factors.items() <= with_lesion.factors.items()
    assert set(with_lesion.labels) == {"tissue", "lesion"}
    centre = torch.tensor([with_lesion.factors[f"lesion_{axis}_mm"] for axis in "xyz"])
    distance = (voxel_centres(64, 208.0) - centre[:, None, None, None]).norm(dim=0)
    far = distance > 3 * (with_lesion.factors["lesion_radius_mm"] + 6)
    assert float(far[plain.labels["tissue"] > 0].float().mean()) > 0.5
    for name in CONTRASTS:
        assert torch.equal(with_lesion.images[name][far], plain.images[name][far]), name
        inside = with_lesion.labels["lesion"] > 0
        assert float((with_lesion.images[name] - plain.images[name])[inside].abs().mean()) > 0.03, name
    assert torch.equal(with_lesion.labels["tissue"][far], plain.labels["tissue"][far])


def test_another_grid_is_the_same_patient(plain):
    for size in (32, 96):
        other = make_subject(0, size=size)
        assert other.images["t1"].shape == (size, size, size)
        assert other.factors == plain.factors
        coarse, fine = sorted((plain.images["t1"], other.images["t1"]), key=lambda image: image.shape[0])
        same = torch.nn.functional.adaptive_avg_pool3d(fine[None], 32)[0]
        mine = torch.nn.functional.adaptive_avg_pool3d(coarse[None], 32)[0]
        stranger = torch.nn.functional.adaptive_avg_pool3d(make_subject(1).images["t1"][None], 32)[0]
        assert float((same - mine).abs().mean()) < 0.2 * float((stranger - mine).abs().mean())
        assert float(mine.mean()) == pytest.approx(float(same.mean()), rel=0.02)


def test_lesion_factors_do_not_depend_on_the_grid_and_match_the_labels(with_lesion):
    coarse = make_subject(0, size=32, lesions=True)
    assert coarse.factors == with_lesion.factors
    labelled_ml = float((with_lesion.labels["lesion"] > 0).sum()) * 3.25**3 / 1000
    assert labelled_ml == pytest.approx(with_lesion.factors["lesion_volume_ml"], rel=0.15)
    parts = [with_lesion.factors[f"lesion_{part}_ml"] for part in ("necrosis", "oedema", "enhancing")]
    assert sum(parts) == pytest.approx(with_lesion.factors["lesion_volume_ml"])


def test_tumours_look_like_tumours(with_lesion):
    lesion, tissue = with_lesion.labels["lesion"], with_lesion.labels["tissue"]
    healthy_white = (tissue == 3) & (lesion == 0)

    def mean(name, where):
        return float(with_lesion.images[name][where].mean())

    assert mean("flair", lesion == 2) > 1.3 * mean("flair", healthy_white)
    assert mean("t2", lesion == 1) > mean("t2", lesion == 2) > mean("t2", healthy_white)
    assert mean("t1", lesion == 2) < mean("t1", healthy_white)
    rim_gain = mean("t1gd", lesion == 3) / mean("t1gd", healthy_white)
    assert rim_gain > mean("t1", lesion == 3) / mean("t1", healthy_white) + 0.2
    for name in ("flair", "t1gd"):
        assert float((with_lesion.images[name][lesion > 0] >= 1).float().mean()) < 0.05  # not clipped


def test_forced_template_is_used():
    first, second = (make_subject(3, size=32, template=name) for name in ("mni152", "colin27"))
    assert (first.factors["template"], second.factors["template"]) == ("mni152", "colin27")
    assert first.factors["ventricle_mm"] == second.factors["ventricle_mm"]
    assert not torch.equal(first.images["t1"], second.images["t1"])


# mean in HU; body, liver, bone volume in ml, vessel enhancement in HU
GOLDEN_CT = (-616.03, (23313.31, 736.78, 1472.26, 33.58))
GOLDEN_MR = {
    # seed: mean of t1, t1gd, t2, flair; brain, csf, ventricle volume in ml
    0: ((0.12144, 0.08246, 0.07401, 0.07603), (1601.04, 185.84, 23.63)),
    10_000_000: ((0.14743, 0.08945, 0.09106, 0.09386), (1952.65, 203.51, 26.76)),
}


@pytest.mark.parametrize("seed", GOLDEN_MR)
def test_golden_statistics_of_brains(seed):
    subject = make_subject(seed, contrasts=CONTRASTS)
    means, volumes = GOLDEN_MR[seed]
    assert [float(image.mean()) for image in subject.images.values()] == pytest.approx(means, rel=1e-3)
    measured = [subject.factors[name] for name in ("brain_volume_ml", "csf_ml", "ventricle_volume_ml")]
    assert measured == pytest.approx(volumes, rel=1e-3)


def test_golden_statistics_of_an_abdomen():
    subject = make_subject(0, modality="ct")
    assert float(subject.images["ct"].mean()) == pytest.approx(GOLDEN_CT[0], rel=1e-3)
    measured = [subject.factors[name] for name in ("body_volume_ml", "liver_ml", "bone_ml", "vessel_shift_hu")]
    assert measured == pytest.approx(GOLDEN_CT[1], rel=5e-3)
    assert set(subject.labels) == {"organs"}
    assert tuple(subject.images) == ("ct",)
    coarse = make_subject(0, size=32, modality="ct")
    assert coarse.factors == subject.factors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 33}, "size is 33; choose an even number of voxels from 16 to 256"),
        ({"size": 8}, "size is 8;"),
        ({"size": 512}, "size is 512;"),
        ({"contrasts": ("t1", "pd")}, "'pd' is not known; choose among t1, t1gd, t2, flair"),
        ({"contrasts": ()}, "give a list of some of t1"),
        ({"contrasts": "t1"}, "give a list of some of t1"),
        ({"modality": "pet"}, "'pet'; choose one of mr, ct"),
        ({"modality": "ct", "lesions": True}, "'mr' only"),
        ({"modality": "ct", "template": "mni152"}, "'mni152'"),
        ({"modality": "ct", "contrasts": ("t1", "t2")}, "which has none"),
        ({"template": "mni"}, "'mni' is not known; choose one of mni152, colin27"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings_are_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        make_subject(**{"seed": 0, **settings})
    assert str(error.value).count(". ") == 0


def test_everything_says_simulated():
    assert "simulated" in subject_module.__doc__.lower()
    assert subject_module.COHORT_VERSIONS == {"mr": "synthetic_brain_v0", "ct": "synthetic_ct_v0"}
