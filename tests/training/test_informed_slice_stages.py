import json

import pytest

from voxdiff.training.arguments import TrainingArguments
from voxdiff.training.informed_slice_arguments import InformedSliceArguments
from voxdiff.training.informed_slice_stages import require_options, require_same_task, require_volumes
from voxdiff.training.slice_source_arguments import SliceSourceArguments

COHORT = {"cohort": "flair", "resolution": "16"}


def arguments(stage="slice", **options):
    given = {"stage": stage, "vae": None if stage == "autoencoder" else "x", **options}
    return InformedSliceArguments(**given | ({"pretrained_model_name_or_path": "y"} if stage == "volume" else {}))


@pytest.mark.parametrize(
    ("stage", "data", "training", "message"),
    [
        ("slice", COHORT, {"channels_last": True}, "--channels_last is a layout of 3D networks"),
        ("autoencoder", COHORT | {"latents_dir": "l"}, {}, "--latents_dir belongs to the stages after"),
        ("generator", COHORT, {"validation_steps": 5}, "--stage generator has no volumes to show"),
        ("volume", {"latents_dir": "l"}, {"validation_steps": 5}, "needs masks to show volumes of"),
        ("slice", COHORT, {"push_to_hub": True, "hub_model_id": "a/b"}, "Only a whole pipeline is published"),
    ],
)
def test_options_without_use_are_refused(stage, data, training, message):
    settings = {"output_dir": "out", "channels_last": False, "push_to_hub": False, **training}
    with pytest.raises(ValueError, match=message):
        require_options(SliceSourceArguments(**data), arguments(stage), TrainingArguments(**settings))


def test_options_with_use_are_not():
    args = TrainingArguments(output_dir="out", channels_last=False, validation_steps=5)
    require_options(SliceSourceArguments(**COHORT), arguments("volume"), args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (16, 20, 8)}, r"x and y must be divisible by 8 .* use 16 or 24 along y"),
        ({"grid": (16, 24, 3)}, "3 slices, fewer than a window of 4; lower --window"),
        ({"volumes": 1}, "1 volumes to train on, fewer than a batch of 2"),
    ],
)
def test_volumes_that_do_not_fit_are_refused(change, message):
    good = {"grid": (16, 24, 5), "divisor": 8, "volumes": 2, "batch": 2}
    require_volumes(arguments(window=4), **good)
    with pytest.raises(ValueError, match=message):
        require_volumes(arguments(window=4), **good | change)


def test_single_slices_need_no_window():
    require_volumes(arguments("generator"), grid=(8, 8, 3), divisor=8, volumes=1, batch=1)


@pytest.mark.parametrize(
    ("stage", "change"), [("slice", {"prediction_type": "v_prediction"}), ("volume", {"timestep_weighting": "uniform"})]
)
def test_another_task_does_not_resume(tmp_path, stage, change):
    require_same_task(None, arguments(stage))
    (tmp_path / "training_state.json").write_text(json.dumps({"run": {"model": vars(arguments(stage))}}))
    require_same_task(tmp_path, arguments(stage))
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"trained with --{name} None, this run has {value}"):
        require_same_task(tmp_path, arguments(stage, **change))
    with pytest.raises(ValueError, match="trained with --stage"):
        require_same_task(tmp_path, arguments("generator"))
