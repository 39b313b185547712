import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from resampling_runs import ShownPipeline, contents, make_case, make_cases

from voxdiff.data.volume_dataset import find_subjects
from voxdiff.volume_files import make_image
from voxdiff.workflows.enhance import enhance
from voxdiff.workflows.enhancement_filter import MaskAgreementFilter, Verdict
from voxdiff.workflows.nnunet_dataset import NnUNetDataset


class EverySecond:
    """Rejects the volumes of variant 1, which it knows by their order."""

    seen = 0

    def settings(self):
        return {"filter": "every second"}

    def __call__(self, image, mask):
        self.seen += 1
        rejected = self.seen % 2 == 0
        return Verdict("every second", self.seen, 0.0, rejected, "it is a second one" if rejected else None)


def test_every_mask_gets_an_image_with_the_slice_of_another(tmp_path):
    pipe, cases = ShownPipeline(), make_cases(3)
    result = enhance(pipe, cases, tmp_path / "out", variants=2, start_position=0.4, num_inference_steps=7, overlap=2)
    assert [path.name for path in result.images][:2] == ["s0-v0_image.nii.gz", "s0-v1_image.nii.gz"]
    assert len(pipe.calls) == 6 and result.rejected == {}
    given = [call["informed_slice"][0] for call in pipe.calls]
    assert all(given[place] in [case.image for case in cases] for place in range(6))
    assert all(given[2 * place] is not cases[place].image for place in range(3))
    assert {(call["num_inference_steps"], call["start_position"], call["overlap"]) for call in pipe.calls} == {
        (7, 0.4, 2)
    }
    mask = nib.load(tmp_path / "out" / "s1-v0_mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(cases[1].mask.dataobj))
    np.testing.assert_array_equal(mask.affine, cases[1].mask.affine)


def test_a_record_says_whose_slice_it_was(tmp_path):
    enhance(ShownPipeline(), make_cases(2), tmp_path, seed=3)
    record = json.loads((tmp_path / "s0-v0.json").read_text())
    assert (record["subject"], record["slice_from_subject"], record["rejected"]) == ("s0", "s1", False)
    assert record["provenance"]["seed"] == record["seed"]
    settings = json.loads((tmp_path / "manifest.json").read_text())["settings"]
    assert (settings["seed"], settings["informed"], len(settings["model"])) == (3, "cross", 64)


def test_the_result_is_a_data_set(tmp_path):
    enhance(ShownPipeline(), make_cases(2), tmp_path, variants=2)
    subjects = find_subjects(tmp_path, ["image", "mask"])
    assert [subject["subject_id"] for subject in subjects] == ["s0-v0", "s0-v1", "s1-v0", "s1-v1"]
    assert subjects[0]["image"].name == "s0-v0_image.nii.gz"


def test_interrupted_anywhere_the_next_run_gives_the_same_files(tmp_path):
    cases, options = make_cases(3), {"variants": 2, "batch_size": 2, "augment_masks": True}
    enhance(ShownPipeline(), cases, tmp_path / "whole", **options)
    for calls in range(3):
        out = tmp_path / f"broken-{calls}"
        with pytest.raises(KeyboardInterrupt):
            enhance(ShownPipeline(fail_at=calls), cases, out, **options)
        assert len(list(out.glob("*_image.nii.gz"))) == 2 * calls
        pipe = ShownPipeline()
        enhance(pipe, cases, out, **options)
        assert len(pipe.calls) == 3 - calls
        assert contents(out) == contents(tmp_path / "whole")


def test_rejected_volumes_are_listed_and_not_exported(tmp_path):
    pipe = ShownPipeline()
    nnunet = NnUNetDataset(
        folder=tmp_path / "raw", dataset_id=11, name="E", channel="FLAIR", labels={"tumour": 1}, to_background=[4]
    )
    result = enhance(pipe, make_cases(2), tmp_path / "out", variants=2, filters=[EverySecond()], nnunet=nnunet)
    assert result.rejected == {f"s{place}-v1": ("it is a second one",) for place in (0, 1)}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["rejections"][0] == {"name": "s0-v1", "reasons": ["it is a second one"]}
    assert not (tmp_path / "out" / "s0-v1_image.nii.gz").exists()
    exported = tmp_path / "raw" / "Dataset011_E"
    assert sorted(path.name for path in (exported / "labelsTr").iterdir()) == ["s0-v0.nii.gz", "s1-v0.nii.gz"]
    assert set(np.unique(np.asarray(nib.load(exported / "labelsTr" / "s0-v0.nii.gz").dataobj))) == {0, 1}
    before = len(pipe.calls)
    enhance(pipe, make_cases(2), tmp_path / "out", variants=2, filters=[EverySecond()], nnunet=nnunet)
    assert len(pipe.calls) == before


def test_a_run_that_rejects_everything_ends_well(tmp_path):
    judge = MaskAgreementFilter(lambda image: np.zeros(image.shape, np.uint8))
    nnunet = NnUNetDataset(
        folder=tmp_path / "raw", dataset_id=11, name="E", channel="FLAIR", labels={"tumour": 1}, to_background=[4]
    )
    result = enhance(ShownPipeline(), make_cases(2), tmp_path / "out", filters=[judge], nnunet=nnunet)
    assert (result.images, len(result.rejected)) == ((), 2)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(("unit", "kind"), [("HU", "organs"), ("a.u.", "brain")])
def test_organs_are_augmented_as_organs(unit, kind, tmp_path):
    pipe = ShownPipeline()
    pipe.volume_processor = replace(pipe.volume_processor, unit=unit)
    cases = [
        replace(case, image=make_image(case.image.dataobj, case.image.affine, unit=unit)) for case in make_cases(2)
    ]
    enhance(pipe, cases, tmp_path / "default", augment_masks=True)
    assert json.loads((tmp_path / "default/manifest.json").read_text())["settings"]["augmentation"] == {"kind": kind}


def test_filters_judge_the_image_beside_the_mask_it_was_made_with(tmp_path):
    def everything_bright(image):
        return (np.asarray(image.dataobj) > 0.9).astype(np.uint8)

    judge = MaskAgreementFilter(everything_bright, threshold=0.95, labels=[1])
    result = enhance(ShownPipeline(), make_cases(3), tmp_path, augment_masks=True, filters=[judge])
    assert result.rejected == {}
    assert json.loads((tmp_path / "s0-v0.json").read_text())["checks"][0]["value"] > 0.95


def test_other_settings_model_or_cases_are_refused(tmp_path):
    cases = make_cases(3)
    enhance(ShownPipeline(), cases, tmp_path)
    other = ShownPipeline()
    other.components["unet"].weight.data.fill_(2.0)
    for pipe, given, options, message in [
        (ShownPipeline(), cases, {"seed": 1}, "seed 0 and 1 is"),
        (ShownPipeline(), cases, {"filters": [EverySecond()]}, "filters"),
        (ShownPipeline(), cases, {"known_slice_noise": "matched"}, "known_slice_noise None and 'matched'"),
        (other, cases, {}, "model"),
        (ShownPipeline(), cases[:2], {}, "cases"),
    ]:
        with pytest.raises(ValueError, match=f"begun with {message}"):
            enhance(pipe, given, tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augmentation": {"kind": "organs"}}, "without augment_masks=True"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"informed": "own", "include_self": True}, "include_self belongs to informed 'cross'"),
        ({"latents": np.zeros(1)}, "argument latents of the pipeline is not for data set tools; allowed are start_pos"),
        ({"output_type": "pt"}, "argument output_type"),
        ({"start_position": float("nan")}, "start_position is nan; give a number from 0.0 to 1.0"),
        ({"start_position": np.float32(0.5)}, "float32 is not JSON serializable.*give plain numbers"),
    ],
)
def test_bad_options_are_one_sentence(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        enhance(ShownPipeline(), make_cases(2), tmp_path, **options)


def test_a_file_that_is_no_mask_is_one_sentence(tmp_path):
    (tmp_path / "data").mkdir()
    cases = [make_case(f"s{place}", seed=place, folder=tmp_path / "data") for place in range(3)]
    cases[1].mask.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"s1_mask.nii.gz' cannot be read"):
        enhance(ShownPipeline(), cases, tmp_path / "out", batch_size=2)


def test_a_pool_of_one_without_itself_is_one_sentence_and_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no subject besides s0"):
        enhance(ShownPipeline(), make_cases(1), tmp_path / "out")
    assert not (tmp_path / "out").exists()
