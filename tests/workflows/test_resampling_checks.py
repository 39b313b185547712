from dataclasses import replace

import numpy as np
import pytest
from resampling_runs import ShownPipeline, make_case, make_cases

from voxdiff.volume_files import make_image
from voxdiff.workflows.enhance import enhance
from voxdiff.workflows.harmonize import harmonize
from voxdiff.workflows.nnunet_dataset import NnUNetDataset

NNUNET = {"dataset_id": 11, "name": "E", "channel": "MR", "labels": {"tumour": 1}, "to_background": [4]}


def relabelled(case, change):
    return replace(case, mask=make_image(change(np.asarray(case.mask.dataobj)), case.mask.affine, unit="label"))


def unusable_masks():
    """Names and cases of which the last cannot be used."""
    first, last = make_cases(3)[:2], make_case("s2", seed=2)
    yield (
        "s2-v0: The mask holds the label 7",
        [*first, relabelled(last, lambda labels: np.where(labels == 1, 7, labels))],
    )
    yield "s2-v0: The mask is empty", [*first, relabelled(last, np.zeros_like)]


@pytest.mark.parametrize(("message", "cases"), unusable_masks())
def test_a_mask_that_cannot_be_used_is_found_before_the_first_volume(message, cases, tmp_path):
    pipe = ShownPipeline()
    with pytest.raises(ValueError, match=message):
        enhance(pipe, cases, tmp_path / "out")
    assert not pipe.calls and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"start_position": 10}, "start_position is 10; give a number"),
        ({"informed_slice": (make_case("a").image, 80)}, "is slice 80 of a volume"),
    ],
)
def test_nor_is_any_volume_made_with_arguments_that_do_not_fit(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        harmonize(
            ShownPipeline(), make_cases(2), tmp_path / "out", **{"informed_slice": make_case("a").image, **options}
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"tumour": 1, "other": 5}}, "consecutive values"),
        ({"to_background": []}, r"The label maps hold 4; the labels are \[0, 1\], name or remap"),
        ({"name": "a b"}, "dataset_name is 'a b'"),
        ({"dataset_id": 0}, "dataset_id is 0"),
        ({"channel": "CT"}, "holds another data set; remove it, or give another dataset_id"),
    ],
)
def test_nor_if_nnunet_would_refuse_them(changes, message, tmp_path):
    enhance(ShownPipeline(), make_cases(2), tmp_path / "first", nnunet=NnUNetDataset(folder=tmp_path / "raw", **NNUNET))
    with pytest.raises(ValueError, match=message):
        enhance(
            ShownPipeline(),
            make_cases(3),
            tmp_path / "out",
            nnunet=NnUNetDataset(folder=tmp_path / "raw", **{**NNUNET, **changes}),
        )
    assert not (tmp_path / "out").exists()


def test_labels_that_no_mask_has_are_warned_of(tmp_path, caplog):
    enhance(ShownPipeline(), make_cases(2), tmp_path / "all")
    assert not caplog.records
    tumours = [relabelled(case, lambda labels: np.where(labels == 4, 0, labels)) for case in make_cases(2)]
    enhance(ShownPipeline(), tumours, tmp_path / "tumours")
    assert "No mask has the label 4, which the model was trained with" in caplog.text
