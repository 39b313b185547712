import pytest

from voxdiff.training.slice_conditioned_arguments import SliceConditionedArguments

TINY = {"block_out_channels": "4,8", "layers_per_block": 1, "norm_num_groups": 2, "num_attention_heads": 2}

MISTAKES = {
    "axis": ({"slice_axis": 3}, "--slice_axis is 3; choose one of 0, 1, 2"),
    "positions": ({"position_embedding": "absolute"}, r"'absolute'; choose one of relative, relative\+absolute"),
    "prediction": ({"prediction_type": "flow"}, "'flow'; choose one of epsilon, v_prediction, sample"),
    "slices": ({"max_slices": 1}, "--max_slices is 1; give a whole number of at least 2"),
    "observed": ({"observed_share": 1.5}, "--observed_share is 1.5; give a number from 0 to 1"),
    "gaps": ({"gap_share": -0.1}, "--gap_share is -0.1; give a number from 0 to 1"),
    "gaps alone": (
        {"gap_share": 1.0, "observed_share": 0.2},
        "--observed_share is of steps that --gap_share and --comb_share leave none of; leave it out",
    ),
    "combs": ({"comb_share": 2.0}, "--comb_share is 2.0; give a number from 0 to 1"),
    "gaps and combs": ({"gap_share": 0.6, "comb_share": 0.5}, "are 1.1 together; give at most 1"),
    "gaps of two": ({"gap_share": 0.5, "max_slices": 2}, "--gap_share needs --max_slices of at least 3"),
    "pretrained interpolation": (
        {"pretrained_model_name_or_path": "x", "interpolate_known": True},
        "--interpolate_known comes from the pretrained model",
    ),
    "blocks": ({"layers_per_block": 0}, "--layers_per_block is 0; give a whole number of at least 1"),
    "pretrained slices": (
        {"pretrained_model_name_or_path": "x", "max_slices": 20},
        "--max_slices comes from the pretrained model",
    ),
    "pretrained": (
        {"pretrained_model_name_or_path": "x", "slice_axis": 0},
        "--slice_axis comes from the pretrained model; leave it out",
    ),
    "pretrained residual": (
        {"pretrained_model_name_or_path": "x", "pre_norm_residual": True},
        "--pre_norm_residual comes from the pretrained model",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake):
    arguments, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        SliceConditionedArguments(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_num_groups": 3}, r"--norm_num_groups is 3, which must divide the widths \(4, 8\)"),
        ({"num_attention_heads": 3}, r"--num_attention_heads is 3, which must divide the widths \(4, 8\)"),
        ({"attention_levels": "2"}, "--attention_levels is 2; give numbers from 0 to 1"),
        ({"block_out_channels": "4,b"}, "--block_out_channels is '4,b'; give whole numbers"),
    ],
)
def test_a_network_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SliceConditionedArguments(**{**TINY, **changes}).make_unet(16)


def test_own_networks_know_where_in_the_volume_they_are():
    config = SliceConditionedArguments(**TINY).make_unet(48).config
    assert (config["position_embedding"], config["position_scale"]) == ("relative+absolute", 47.0)
    assert (config["pre_norm_residual"], config["interpolate_known"], config["block_out_channels"]) == (
        False,
        False,
        (4, 8),
    )
    assert SliceConditionedArguments(**TINY, interpolate_known=True).make_unet(48).config["interpolate_known"]
    published = SliceConditionedArguments(**TINY, position_embedding="relative", pre_norm_residual=True)
    config = published.make_unet(48).config
    assert (config["position_embedding"], config["pre_norm_residual"]) == ("relative", True)


def test_every_option_of_the_network_reaches_it():
    given = {
        "block_out_channels": "6,12",
        "layers_per_block": 3,
        "num_attention_heads": 3,
        "norm_num_groups": 3,
        "position_embedding": "relative",
        "patch_size": 2,
        **dict.fromkeys(("pre_norm_residual", "interpolate_known", "slice_convolution"), True),
    }
    config = SliceConditionedArguments(**given, attention_levels="0").make_unet(8).config
    expected = given | {"block_out_channels": (6, 12), "attention_levels": (True, False)}
    assert {name: config[name] for name in expected} == expected
    usual = SliceConditionedArguments().make_scheduler()
    other = SliceConditionedArguments(scheduler="fdm").make_scheduler()
    assert type(usual).__name__ == "DPMSolverMultistepScheduler" and type(other).__name__ == "DDPMScheduler"


@pytest.mark.parametrize(
    ("levels", "expected"), [(None, (False, True, True)), ("none", (False,) * 3), ("0,2", (True, False, True))]
)
def test_levels_that_attend(levels, expected):
    arguments = SliceConditionedArguments(**{**TINY, "block_out_channels": "4,4,8"}, attention_levels=levels)
    assert arguments.make_unet(16).config["attention_levels"] == expected


def test_the_diffusion_is_the_published_one_unless_asked_otherwise():
    config = SliceConditionedArguments().make_scheduler().config
    assert (config["beta_schedule"], config["beta_start"], config["beta_end"]) == ("linear", 1e-4, 0.02)
    assert (config["prediction_type"], config["clip_sample"]) == ("epsilon", True)
    other = SliceConditionedArguments(prediction_type="v_prediction").make_scheduler().config
    assert other["prediction_type"] == "v_prediction"
