import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from resampling_runs import AFFINE, ShownPipeline, contents, make_case

from voxdiff.volume_files import make_image
from voxdiff.workflows.counterfactual import counterfactual
from voxdiff.workflows.masked_cases import MaskedCase


def edited(case, slices=slice(3, 5)):
    labels = np.asarray(case.mask.dataobj).copy()
    labels[7:9, 5:7, slices] = 3
    return make_image(labels, AFFINE, unit="label")


def test_volumes_share_noise_and_slice_and_differ_in_the_edit(tmp_path):
    case = make_case("a")
    pipe = ShownPipeline()
    result = counterfactual(pipe, case, edited(case), tmp_path, seed=5, num_inference_steps=3, overlap=2)
    (call,) = pipe.calls
    assert call["informed_slice"] == [case.image, case.image]
    assert (call["num_inference_steps"], call["overlap"]) == (3, 2)
    seeds = [record["seed"] for record in json.loads((tmp_path / "counterfactual.json").read_text())["provenance"]]
    assert seeds == [5, 5]
    assert result.inside > 0 and result.outside == 0
    difference = np.asarray(result.edited.dataobj) - np.asarray(result.original.dataobj)
    np.testing.assert_allclose(np.asarray(nib.load(tmp_path / "difference.nii.gz").dataobj), difference, atol=1e-6)


def test_the_rest_of_the_anatomy_is_measured_without_the_air_around_it(tmp_path):
    class Brighter(ShownPipeline):
        """Whose second volume is brighter by 0.1 in all of the brain but the edit."""

        def __call__(self, masks, **arguments):
            output = super().__call__(masks, **arguments)
            labels = np.asarray(masks[1].dataobj)
            values = np.asarray(output.volumes[0].dataobj) + 0.1 * np.isin(labels, (1, 4))
            output.volumes[1] = make_image(values.astype(np.float32), AFFINE, unit="a.u.")
            return output

    case = make_case("a")
    result = counterfactual(Brighter(), case, edited(case), tmp_path)
    assert (result.inside, result.outside) == pytest.approx((0, 0.1), abs=1e-6)


def test_the_slice_lies_away_from_the_edit_where_there_is_most_to_see(tmp_path):
    case = make_case("a")
    area = (np.asarray(case.mask.dataobj) > 0).sum(axis=(0, 1))
    for edit in (slice(3, 5), slice(6, 9)):
        out = tmp_path / str(edit.start)
        found = counterfactual(ShownPipeline(), case, edited(case, edit), out).slice_index
        away = [place for place in range(10) if place <= edit.start - 2 or place >= edit.stop + 1]
        assert found in away and area[found] == max(area[away])


def test_the_slice_is_found_on_the_model_s_grid(tmp_path):
    case = make_case("a")
    flipped = np.diag([1, 1, -1, 1])
    flipped[2, 3] = 9
    images = [
        make_image(np.asarray(image.dataobj)[..., ::-1], image.affine @ flipped)
        for image in (case.image, case.mask, edited(case, slice(1, 4)))
    ]
    plain = counterfactual(ShownPipeline(), case, edited(case, slice(1, 4)), tmp_path / "a")
    turned = counterfactual(ShownPipeline(), MaskedCase("a", *images[:2]), images[2], tmp_path / "b")
    assert plain.slice_index == turned.slice_index


def test_files_and_picture(tmp_path):
    case = make_case("a")
    counterfactual(ShownPipeline(), case, edited(case), tmp_path)
    names = ("counterfactual.json", "difference.nii.gz", "difference.png", "edited.nii.gz", "edited_mask.nii.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "original.nii.gz"])
    picture = np.asarray(Image.open(tmp_path / "difference.png")).astype(int)
    original, changed, difference, region = np.split(picture, 4)
    assert np.abs(original - changed).max() > 50
    assert (region > 200).any() and np.abs(difference[region > 200] - 128).mean() > 20
    assert np.median(difference[region == 0]) == 128


def test_again_is_the_same_and_another_edit_is_refused(tmp_path):
    case = make_case("a")
    counterfactual(ShownPipeline(), case, edited(case), tmp_path)
    before = contents(tmp_path)
    counterfactual(ShownPipeline(), case, edited(case), tmp_path)
    assert contents(tmp_path) == before
    with pytest.raises(ValueError, match="holds another counterfactual"):
        counterfactual(ShownPipeline(), case, edited(case, slice(6, 8)), tmp_path)


def test_bad_input_is_one_sentence(tmp_path):
    case = make_case("a")
    other = make_image(np.asarray(case.mask.dataobj)[1:], AFFINE)
    for given, mask, message in [
        (MaskedCase("a", None, case.mask), edited(case), "a has no image"),
        (case, case.mask, "is its own mask"),
        (case, other, "the edited mask has the shape"),
        (MaskedCase("a", other, case.mask), edited(case), "the image has the shape"),
        (case, edited(case, slice(0, 10, 3)), "leaves no slice that is 2 slices away"),
    ]:
        with pytest.raises(ValueError, match=message):
            counterfactual(ShownPipeline(), given, mask, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_again_gives_the_same_files_and_clears_what_a_killed_run_left(tmp_path):
    case = make_case("a")
    counterfactual(ShownPipeline(), case, edited(case), tmp_path)
    first = contents(tmp_path)
    (tmp_path / ".tmp-0-original.nii.gz").write_bytes(b"half")
    counterfactual(ShownPipeline(), case, edited(case), tmp_path)
    assert contents(tmp_path) == first


def test_volumes_that_were_given_are_not_written_over(tmp_path):
    case = make_case("a")
    nib.save(edited(case), tmp_path / "edited_mask.nii.gz")
    with pytest.raises(ValueError, match=r"written over .*edited_mask\.nii\.gz"):
        counterfactual(ShownPipeline(), case, tmp_path / "edited_mask.nii.gz", tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_tissue_map_holds_for_both_masks(tmp_path):
    whole = make_case("a")
    labels = np.asarray(whole.mask.dataobj)
    tissue, lesion = (make_image(values.astype(np.uint8), AFFINE) for values in (labels > 0, labels * (labels < 4)))
    pipe, case = ShownPipeline(), MaskedCase("a", whole.image, lesion, tissue=tissue)
    counterfactual(pipe, case, edited(MaskedCase("a", None, lesion)), tmp_path)
    for mask, expected in zip(pipe.calls[0]["mask"], (whole.mask, edited(whole)), strict=True):
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
