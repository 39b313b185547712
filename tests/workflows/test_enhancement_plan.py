import random

import pytest

from voxdiff.workflows.enhancement_plan import plan_enhancement
from voxdiff.workflows.masked_cases import MaskedCase


def scans(*names):
    """ "a-1" is a scan of a."""
    return [MaskedCase(name.split("-")[0], f"{name}.nii.gz", f"{name}_mask.nii.gz", name) for name in names]


CASES = scans("a-1", "a-2", "b", "c", "d", "e")


def donors(planned):
    return {item.name: item.donor.name for item in planned}


def test_never_a_slice_of_the_mask_s_own_subject():
    for seed in range(50):
        for item in plan_enhancement(CASES, variants=3, seed=seed):
            assert item.donor.subject != item.case.subject


def test_every_other_subject_is_drawn_about_equally_often():
    drawn = [plan_enhancement(CASES, seed=seed)[0].donor.subject for seed in range(400)]
    assert {subject: round(drawn.count(subject) / 400, 1) for subject in "bcde"} == pytest.approx(
        dict.fromkeys("bcde", 0.25), abs=0.06
    )


def test_variants_of_a_mask_have_different_donors_as_long_as_there_are():
    planned = [item for item in plan_enhancement(CASES, variants=5) if item.case.name == "a-1"]
    assert sorted(item.donor.subject for item in planned[:4]) == ["b", "c", "d", "e"]
    assert planned[4].donor.subject == planned[0].donor.subject


def test_the_plan_does_not_depend_on_the_order_of_the_cases_or_on_the_number_of_variants():
    shuffled = random.Random(1).sample(CASES, len(CASES))
    whole = plan_enhancement(CASES, variants=3, augment_masks=True, seed=7)
    assert plan_enhancement(shuffled, variants=3, augment_masks=True, seed=7) == whole
    fewer = plan_enhancement(CASES, variants=1, augment_masks=True, seed=7)
    assert fewer == [item for item in whole if item.variant == 0]
    assert donors(plan_enhancement(CASES, variants=3, seed=8)) != donors(whole)


def test_another_subject_changes_only_the_choices_that_fall_on_it():
    before = donors(plan_enhancement(CASES))
    after = donors(plan_enhancement([*CASES, *scans("f")]))
    assert all(after[name] in (donor, "f") for name, donor in before.items())


def test_noise_and_mask_changes_have_seeds_of_their_own():
    planned = plan_enhancement(CASES, variants=2, augment_masks=True)
    seeds = [item.seed for item in planned] + [item.mask_seed for item in planned]
    assert len(set(seeds)) == 2 * len(planned) and max(seeds) < 2**53
    assert {item.mask_seed for item in plan_enhancement(CASES)} == {None}


def test_own_generated_and_included_slices():
    assert all(item.donor == item.case for item in plan_enhancement(CASES, informed="own"))
    assert {item.donor for item in plan_enhancement(CASES, informed="generated")} == {None}
    drawn = [plan_enhancement(CASES, include_self=True, seed=seed)[2].donor.subject for seed in range(40)]
    assert "b" in drawn and set(drawn) <= set("abcde")


def test_a_mask_without_an_image_gives_no_slice():
    cases = [*scans("a", "b"), MaskedCase("m", None, "mask.nii.gz")]
    assert {item.donor.name for item in plan_enhancement(cases, variants=4)} == {"a", "b"}


@pytest.mark.parametrize(
    ("cases", "options", "message"),
    [
        (scans("a"), {}, "no subject besides a"),
        (scans("a-1", "a-2"), {}, "no subject besides a"),
        ([MaskedCase("a", None, "m"), *scans("b")], {"informed": "own"}, "a has no image"),
        (CASES, {"informed": "other"}, "allowed are cross, own, generated, none"),
        (CASES, {"variants": 0}, "variants is 0"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(cases, options, message):
    with pytest.raises(ValueError, match=message):
        plan_enhancement(cases, **options)


def test_a_pool_of_one_with_itself_included_is_allowed():
    assert plan_enhancement(scans("a"), include_self=True)[0].donor.name == "a"
