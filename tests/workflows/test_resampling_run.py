import nibabel as nib
import numpy as np
from resampling_runs import ShownPipeline, contents, make_case, make_cases

from voxdiff.workflows.enhance import enhance
from voxdiff.workflows.masked_cases import MaskedCase


def test_a_mask_is_encoded_once_for_all_its_variants(tmp_path):
    pipe = ShownPipeline()
    enhance(pipe, make_cases(2), tmp_path / "plain", variants=3, batch_size=2)
    assert pipe.encoded == 2
    enhance(pipe, make_cases(2), tmp_path / "changed", variants=3, augment_masks=True)
    assert pipe.encoded == 2 + 6


def test_changed_masks_are_written_as_the_image_has_them(tmp_path):
    pipe, cases = ShownPipeline(), make_cases(2)
    enhance(pipe, cases, tmp_path, variants=2, augment_masks=True, augmentation={"max_rotation": 10.0})
    written = [np.asarray(nib.load(tmp_path / f"s0-v{variant}_mask.nii.gz").dataobj) for variant in (0, 1)]
    assert (written[0] != np.asarray(cases[0].mask.dataobj)).any() and (written[0] != written[1]).any()
    np.testing.assert_array_equal(written[0], np.asarray(pipe.calls[0]["mask"][0].dataobj))


def test_a_mask_is_mirrored_left_right_in_any_orientation(tmp_path):
    case, other = make_case("a"), make_case("b", seed=1)
    turned = nib.as_closest_canonical(case.mask).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    options = {"variants": 1, "augment_masks": True, "augmentation": {"flip_probability": 1.0}}
    enhance(ShownPipeline(), [case, other], tmp_path / "a", **options)
    enhance(ShownPipeline(), [MaskedCase("a", case.image, turned), other], tmp_path / "b", **options)
    plain, found = (nib.load(tmp_path / name / "a-v0_mask.nii.gz") for name in "ab")
    assert found.shape == turned.shape and found.shape != plain.shape
    np.testing.assert_allclose(found.affine, turned.affine)
    back = nib.as_closest_canonical(found)
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(plain.dataobj))


def test_a_batch_gives_what_single_volumes_do_and_holds_one_shape(tmp_path):
    cases = [*make_cases(3), make_case("t", seed=9, shape=(8, 8, 6))]
    pipe = ShownPipeline()
    enhance(pipe, cases, tmp_path / "a", batch_size=2)
    assert [len(call["mask"]) for call in pipe.calls] == [2, 1, 1]
    enhance(ShownPipeline(), cases, tmp_path / "b")
    images = [
        {name: data for name, data in contents(tmp_path / folder).items() if name.endswith(".nii.gz")}
        for folder in "ab"
    ]
    assert images[0] == images[1] and len(images[0]) == 8


def test_a_batch_of_which_a_part_is_missing_is_made_whole_and_what_was_there_is_kept(tmp_path):
    enhance(ShownPipeline(), make_cases(2), tmp_path, variants=2, batch_size=2)
    before = contents(tmp_path)
    (tmp_path / "s0-v1.json").unlink()
    pipe = ShownPipeline()
    enhance(pipe, make_cases(2), tmp_path, variants=2, batch_size=2)
    assert [len(call["mask"]) for call in pipe.calls] == [2]
    assert contents(tmp_path) == before


def test_slices_that_are_generated_are_not_given(tmp_path):
    pipe = ShownPipeline()
    enhance(pipe, [MaskedCase("a", None, make_case("a").mask)], tmp_path, informed="generated")
    assert pipe.calls[0]["informed_slice"] is None
