import json

import nibabel as nib
import numpy as np
import pytest
import torch
from resampling_runs import (
    ShownPipeline,
    contents,
    make_case,
    make_cases,
    make_informed_slice_pipeline,
)

from voxdiff.workflows.harmonize import describe_slice, harmonize
from voxdiff.workflows.masked_cases import MaskedCase


def test_every_mask_gets_the_same_slice(tmp_path):
    pipe, donor = ShownPipeline(), make_case("donor", seed=9).image
    cases = [MaskedCase(case.subject, None, case.mask) for case in make_cases(3)]
    result = harmonize(pipe, cases, tmp_path, informed_slice=donor, start_position=0.25, num_inference_steps=3)
    assert len(result.images) == 3
    assert [call["informed_slice"] for call in pipe.calls] == [[donor]] * 3
    assert {(call["start_position"], call["num_inference_steps"]) for call in pipe.calls} == {(0.25, 3)}
    assert len({json.loads((tmp_path / f"s{place}-v0.json").read_text())["seed"] for place in range(3)}) == 3


def test_appearance_is_more_alike_than_before(tmp_path):
    cases = make_cases(4)
    result = harmonize(ShownPipeline(), cases, tmp_path, informed_slice=cases[0].image)
    brain = [np.asarray(case.mask.dataobj) == 4 for case in cases]
    before = [np.asarray(case.image.dataobj)[inside].mean() for case, inside in zip(cases, brain, strict=True)]
    from voxdiff import load_volume

    after = [
        np.asarray(load_volume(path).dataobj)[inside].mean() for path, inside in zip(result.images, brain, strict=True)
    ]
    assert np.std(after) < 0.1 * np.std(before)


def test_interrupted_the_next_run_gives_the_same_files_and_another_slice_is_refused(tmp_path):
    cases, slices = make_cases(3), [make_case("donor", seed=seed).image for seed in (8, 9)]
    harmonize(ShownPipeline(), cases, tmp_path / "whole", informed_slice=slices[0])
    with pytest.raises(KeyboardInterrupt):
        harmonize(ShownPipeline(fail_at=2), cases, tmp_path / "broken", informed_slice=slices[0])
    with pytest.raises(ValueError, match="begun with informed_slice"):
        harmonize(ShownPipeline(), cases, tmp_path / "broken", informed_slice=slices[1])
    harmonize(ShownPipeline(), cases, tmp_path / "broken", informed_slice=slices[0])
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_slice_is_known_by_its_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_case("s", folder=tmp_path / name)
    first, second = (tmp_path / name / "s_image.nii.gz" for name in "ab")
    assert describe_slice(first) == describe_slice(str(second))
    assert (describe_slice(first)["file"], describe_slice((first, np.int64(3)))["index"]) == ("s_image.nii.gz", 3)
    image = nib.load(first)
    moved = nib.Nifti1Image(image.dataobj, 2 * image.affine)
    given = (first, (first, 3), (first, 4), np.zeros((2, 2)), np.zeros((1, 4)), np.ones((2, 2)), image, moved)
    assert len({json.dumps(describe_slice(one)) for one in given}) == len(given)


def test_a_generated_slice_is_made_once_for_all_masks(tmp_path, monkeypatch):
    pipe, cases = make_informed_slice_pipeline(generator=True), make_cases(2)
    pipe.set_progress_bar_config(disable=True)
    made, generate = [], type(pipe).generate_slice
    monkeypatch.setattr(
        type(pipe), "generate_slice", lambda *given, **options: made.append(generate(*given, **options)) or made[-1]
    )
    options = {"informed_slice": "generated", "num_inference_steps": 1}
    for name, given in (("a", cases), ("b", cases[:1])):
        harmonize(pipe, given, tmp_path / name, **options)
    assert len(made) == 2 and torch.equal(made[0], made[1]) and made[0].shape == (1, 2, 8, 6)
    alone, first = (contents(tmp_path / name)["s0-v0_image.nii.gz"] for name in "ba")
    assert alone == first
    settings = json.loads((tmp_path / "a" / "manifest.json").read_text())["settings"]
    assert settings["informed_slice"] == {"generated": True}
    harmonize(pipe, cases[:1], tmp_path / "c", seed=1, **options)
    assert not torch.equal(made[2], made[0])
    with pytest.raises(ValueError, match="start_position is slice 4, and masks of any depth share"):
        harmonize(pipe, cases, tmp_path / "d", start_position=4, **options)


def test_without_a_slice_there_is_nothing_to_harmonize_with(tmp_path):
    with pytest.raises(ValueError, match="no informed slice to harmonize with"):
        harmonize(ShownPipeline(), make_cases(2), tmp_path, informed_slice=None)
    with pytest.raises(ValueError, match="is a list, and all masks get the same one"):
        harmonize(ShownPipeline(), make_cases(2), tmp_path, informed_slice=[np.zeros((16, 12))] * 2)
