import json

import pytest
import torch
from resampling_runs import ShownPipeline, make_cases

from voxdiff.workflows.enhancement_manifest import ResampledFolder, model_hash
from voxdiff.workflows.enhancement_plan import plan_enhancement


@pytest.fixture
def planned():
    return plan_enhancement(make_cases(2))


def write(folder, item, rejected=False):
    case = item.case
    record = {"checks": [{"rejected": rejected, "reason": "too dark"}], "provenance": {"seed": 1, "seconds": 2.0}}
    folder.write(item, case.image, case.mask, record, rejected=rejected)


def test_the_plan_is_there_before_the_first_volume(tmp_path, planned):
    ResampledFolder(tmp_path / "out", {"seed": 0}, planned)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["complete"], manifest["settings"]) == (False, {"seed": 0})
    assert [volume["slice_from_subject"] for volume in manifest["volumes"]] == ["s1", "s0"]


def test_a_rejected_volume_leaves_its_record_only_and_is_listed(tmp_path, planned):
    folder = ResampledFolder(tmp_path, {}, planned)
    write(folder, planned[0])
    write(folder, planned[1], rejected=True)
    folder.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("manifest.json", "metadata.csv", "s0-v0.json", "s0-v0_image.nii.gz", "s0-v0_mask.nii.gz", "s1-v0.json")
    ]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["complete"], manifest["accepted"]) == (True, 1)
    assert manifest["rejections"] == [{"name": "s1-v0", "reasons": ["too dark"]}]
    assert (tmp_path / "metadata.csv").read_text().splitlines() == [
        "image_file_name,mask_file_name,subject_id,mask_subject,slice_subject,synthetic",
        "s0-v0_image.nii.gz,s0-v0_mask.nii.gz,s0-v0,s0,s1,True",
    ]


def test_what_differs_between_two_runs_is_not_recorded(tmp_path, planned):
    folder = ResampledFolder(tmp_path, {}, planned)
    write(folder, planned[0])
    assert json.loads((tmp_path / "s0-v0.json").read_text())["provenance"] == {"seed": 1}


def test_a_folder_of_other_settings_or_content_is_refused(tmp_path, planned):
    write(ResampledFolder(tmp_path / "out", {"seed": 0, "variants": 2}, planned), planned[0])
    ResampledFolder(tmp_path / "out", {"seed": 0, "variants": 2}, planned)
    with pytest.raises(ValueError, match="begun with variants 2 and 3 is asked for now"):
        ResampledFolder(tmp_path / "out", {"seed": 0, "variants": 3}, planned)
    with pytest.raises(ValueError, match="is not empty and has no manifest"):
        ResampledFolder(tmp_path, {}, planned)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match="is a file"):
        ResampledFolder(tmp_path / "file", {}, planned)
    (tmp_path / "out" / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="no manifest that this version of voxdiff reads"):
        ResampledFolder(tmp_path / "out", {"seed": 0, "variants": 2}, planned)


def test_settings_that_gave_no_volume_may_be_corrected(tmp_path, planned):
    ResampledFolder(tmp_path, {"steps": 0}, planned)
    ResampledFolder(tmp_path, {"steps": 5}, planned)
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"] == {"steps": 5}


def test_what_a_killed_run_was_writing_is_removed(tmp_path, planned):
    ResampledFolder(tmp_path, {}, planned)
    (tmp_path / ".tmp-0123-s0-v0_image.nii.gz").write_bytes(b"half")
    (tmp_path / ".tmp-0123-folder").mkdir()
    ResampledFolder(tmp_path, {}, planned)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_model_is_known_by_its_weights_and_configuration():
    pipe, same, other = ShownPipeline(), ShownPipeline(), ShownPipeline()
    other.config = {**pipe.config, "overlap": 2, "_name_or_path": "a"}
    assert model_hash(pipe) == model_hash(same) != model_hash(other)
    with torch.no_grad():
        same.components["unet"].bias[0] = 1e-6
    assert model_hash(pipe) != model_hash(same)
    other.config = {**pipe.config, "_name_or_path": "b"}
    assert model_hash(pipe) == model_hash(other)
