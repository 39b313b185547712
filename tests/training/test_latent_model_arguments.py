import pytest
import torch

from voxdiff.models.biflownet_3d import BiFlowNet3DModel
from voxdiff.models.unet_wavelet_3d import WaveletUNet3DModel
from voxdiff.training.latent_model_arguments import LatentModelArguments

SMALL = {"block_out_channels": "6,6,12", "norm_num_groups": 3, "num_dit_heads": 2, "vae": "x"}
AGE = {"age": {"place": 0, "mean": 50.0, "std": 10.0}}


def make_unet(num_classes=0, scalar_conditions=None, compression=8, **options):
    arguments = LatentModelArguments(**{**SMALL, **options})
    return arguments.make_unet(
        channels=2, compression=compression, num_classes=num_classes, scalar_conditions=scalar_conditions or {}
    )


def test_the_default_is_the_published_network():
    with torch.device("meta"):
        arguments = LatentModelArguments(vae="x")
        models = [
            arguments.make_unet(channels=8, compression=compression, num_classes=7, scalar_conditions={})
            for compression in (8, 4)
        ]
        published = [BiFlowNet3DModel(axis_order="xyz", token_size=size) for size in (1, 2)]
    for model, expected in zip(models, published, strict=True):
        differing = {key for key in expected.config if model.config[key] != expected.config[key]}
        assert differing <= {"_use_default_values"}


def test_conditions_are_those_of_the_data():
    config = make_unet(3, AGE).config
    assert (config["num_class_embeds"], config["scalar_conditions"]) == (3, AGE)
    config = make_unet().config
    assert (config["num_class_embeds"], config["scalar_conditions"]) == (None, None)


@pytest.mark.parametrize(("label_dropout", "scalar_dropout"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1), (0.1, 0.1)])
def test_each_dropout_is_a_fact_of_its_own(label_dropout, scalar_dropout):
    config = make_unet(3, AGE, label_dropout=label_dropout, scalar_dropout=scalar_dropout).config
    assert (config["null_condition"], config["optional_scalars"]) == (label_dropout > 0, scalar_dropout > 0)


def test_options_reach_the_network():
    options = {"sub_volume_size": 4, "token_size": 4, "num_mid_dit_layers": 2, "mlp_ratio": 2, "attention_head_dim": 8}
    config = make_unet(**options, attention_levels="0,2", num_attention_heads=3).config
    assert all(config[name] == value for name, value in options.items())
    assert (config["attention_levels"], config["num_attention_heads"]) == ((True, False, True), 3)
    assert make_unet(intra_patch="none", attention_levels="none", num_dit_heads=None).config["intra_patch"] is None
    plain = make_unet(unet="unet3d", layers_per_block=1, num_dit_heads=None)
    assert isinstance(plain, WaveletUNet3DModel)
    assert (plain.config["skip_mode"], plain.config["layers_per_block"]) == ("concat", 1)


@pytest.mark.parametrize("clips", [True, False])
def test_the_scheduler_clips_only_what_has_bounds(clips):
    config = LatentModelArguments(vae="x", scheduler="med-ddpm").make_scheduler(clips).config
    assert (config["clip_sample"], config["prediction_type"]) == (clips, "epsilon")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vae": None}, "Give either --vae"),
        ({"pretrained_model_name_or_path": "y"}, "Give either --vae"),
        ({"vae": None, "pretrained_model_name_or_path": "y", "mlp_ratio": 2}, "comes from the pretrained model"),
        ({"unet": "unet2d"}, "--unet is 'unet2d'; choose one of biflownet, unet3d"),
        ({"unet": "unet3d", "mlp_ratio": 2}, "--mlp_ratio belongs to --unet biflownet"),
        ({"intra_patch": "none", "token_size": 2}, "--token_size belongs to the intra-patch flow, which is none"),
        ({"intra_patch": "none", "mlp_ratio": 2}, "--mlp_ratio belongs to the intra-patch flow, which is none"),
        ({"intra_patch": "unet", "num_dit_heads": 2}, "--num_dit_heads belongs to --intra_patch dit"),
        ({"prediction_type": "noise"}, "--prediction_type is 'noise'"),
        ({"scalar_dropout": 1.5}, "--scalar_dropout is 1.5"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        LatentModelArguments(**{"vae": "x", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_levels": "3"}, "--attention_levels is 3; give numbers from 0 to 2"),
        ({"label_dropout": 0.1}, "--label_dropout drops conditions, and there is none"),
        ({"scalar_dropout": 0.1, "num_classes": 2}, "--scalar_dropout drops scalars, and there is none"),
        ({"unet": "unet3d", "num_dit_heads": None, "num_classes": 2}, "--unet unet3d has no conditions"),
    ],
)
def test_networks_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        make_unet(**options)
