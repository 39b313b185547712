import pytest
import torch
from diffusers import UNet2DModel

from voxdiff.models.unet_informed_slice import InformedSliceUNetModel
from voxdiff.training.informed_slice_arguments import InformedSliceArguments

SMALL = {"block_out_channels": "8,16", "norm_num_groups": 4, "attention_head_dim": 4, "layers_per_block": 1}


def arguments(**options):
    return InformedSliceArguments(**{"stage": "slice", "vae": "x", **options})


def test_the_default_networks_are_the_published_ones():
    with torch.device("meta"):
        unet = arguments().make_slice_unet(4)
        generator = arguments(stage="generator").make_generator_unet(4)
        expected = InformedSliceUNetModel()
    assert unet.config["in_channels"] == 12
    spatial = {name for name in expected.state_dict() if "vol" not in name}
    assert set(unet.state_dict()) == spatial
    assert round(sum(weight.numel() for weight in unet.parameters()) / 1e6, 1) == 274.1
    assert round(sum(weight.numel() for weight in generator.parameters()) / 1e6, 1) == 414.1
    assert tuple(generator.config["attention_head_dim"]) == (7, 14, 28, 28)
    assert generator.down_blocks[0].attentions[0].transformer_blocks[0].attn1.heads == 7


def test_options_reach_the_networks():
    unet = arguments(**SMALL, attention_levels="0", informed_slice="none").make_slice_unet(3)
    assert isinstance(unet, UNet2DModel)
    assert (unet.config["in_channels"], unet.config["out_channels"]) == (6, 3)
    assert tuple(unet.config["down_block_types"]) == ("AttnDownBlock2D", "DownBlock2D")
    assert tuple(unet.config["up_block_types"]) == ("UpBlock2D", "AttnUpBlock2D")
    assert InformedSliceUNetModel.from_slice_model(unet).config["attention_levels"] == (True, False)
    plain = arguments(**SMALL, attention_levels="none").make_slice_unet(3)
    assert InformedSliceUNetModel.from_slice_model(plain).config["attention_levels"] == (False, False)
    generator = arguments(**SMALL, stage="generator", cross_attention_dim=6).make_generator_unet(3)
    assert (generator.config["cross_attention_dim"], generator.config["in_channels"]) == (6, 3)
    assert generator(torch.randn(1, 3, 4, 6), 3, torch.randn(1, 1, 6)).sample.shape == (1, 3, 4, 6)


@pytest.mark.parametrize("make", ["make_slice_unet", "make_generator_unet"])
def test_heads_divide_the_widths_that_attend(make):
    stage = "slice" if "slice" in make else "generator"
    wide = arguments(stage=stage, block_out_channels="8,24", norm_num_groups=4, attention_head_dim=16)
    with pytest.raises(ValueError, match="--attention_head_dim is 16, which must divide the widths"):
        getattr(wide, make)(2)


def test_the_scheduler_predicts_what_was_asked_for():
    chosen = arguments(prediction_type="v_prediction", scheduler="gem-ddim").make_scheduler()
    assert (type(chosen).__name__, chosen.config["prediction_type"]) == ("DDIMScheduler", "v_prediction")
    assert type(arguments().make_scheduler()).__name__ == "DPMSolverMultistepScheduler"


def test_stages_have_their_own_defaults():
    assert arguments(stage="generator").number_of_slices == 4
    assert InformedSliceArguments(stage="autoencoder").number_of_slices == 8
    assert InformedSliceArguments(stage="autoencoder").widths == (128, 256, 512, 512)
    volume = {"stage": "volume", "pretrained_model_name_or_path": "y"}
    assert arguments(**volume).share_known is None
    assert arguments(**volume, known_slice_indicator=True).share_known == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "stage1"}, "--stage is 'stage1'"),
        ({"vae": None}, "works in latents; give --vae"),
        ({"stage": "autoencoder"}, "--vae belongs to --stage slice or volume or generator"),
        ({"stage": "volume"}, "--stage volume needs the slice stage"),
        ({"known_share": 0.5}, "--known_share belongs to --stage volume"),
        ({"train_spatial": True}, "--train_spatial belongs to --stage volume"),
        ({"informed_slice": "other"}, "--informed_slice is 'other'; choose one of own, none"),
        ({"prediction_type": "flow"}, "--prediction_type is 'flow'"),
        ({"window": 0}, "--window is 0; give a whole number of at least 1"),
        ({"pretrained_model_name_or_path": "y", "layers_per_block": 1}, "comes from the pretrained model"),
        ({"stage": "autoencoder", "vae": None, "ignore_autoencoder_report": True}, "to the stages after the autoenc"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        arguments(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"known_share": 0.2}, "--known_share belongs to --known_slice_indicator"),
        ({"block_out_channels": "4,8"}, "--block_out_channels belongs to --stage autoencoder or slice or generator"),
        ({"informed_slice": "none", "slice_model": "z"}, "--slice_model makes informed slices"),
        ({"informed_slice": "none", "known_slice_indicator": True}, "needs informed slices"),
    ],
)
def test_options_that_contradict_each_other_in_the_volume_stage(options, message):
    with pytest.raises(ValueError, match=message):
        arguments(stage="volume", pretrained_model_name_or_path="y", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_levels": "2"}, "--attention_levels is 2; give numbers from 0 to 1"),
        ({"norm_num_groups": 3}, "--norm_num_groups is 3, which must divide the widths"),
        ({"stage": "generator", "attention_head_dim": 3}, "--attention_head_dim is 3, which must divide"),
        ({"block_out_channels": "0"}, "give numbers above 0"),
    ],
)
def test_networks_that_do_not_exist(options, message):
    chosen = arguments(**{**SMALL, **options})
    with pytest.raises(ValueError, match=message):
        chosen.make_generator_unet(2) if chosen.stage == "generator" else chosen.make_slice_unet(2)
