import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel

from voxdiff.models.unet_informed_slice import InformedSliceUNetModel
from voxdiff.schedulers import make_scheduler
from voxdiff.training.informed_slice_arguments import InformedSliceArguments
from voxdiff.training.informed_slice_parts import (
    load_part,
    load_scheduler_of,
    load_slice_model,
    make_network,
)

SMALL = {"block_out_channels": "4,8", "norm_num_groups": 2, "attention_head_dim": 4, "layers_per_block": 1}


def arguments(stage, **options):
    return InformedSliceArguments(
        **{"stage": stage, "vae": "x", "window": None if stage == "generator" else 4, **options}
    )


def save_stage(folder, stage, scheduler="gem-dpm++", **changes):
    """What a stage leaves behind."""
    unet, _ = make_network(arguments(stage, **SMALL), 2)
    unet.save_pretrained(folder)
    make_scheduler(scheduler, **changes).save_pretrained(folder / "scheduler")
    return folder


def test_the_volume_stage_starts_as_the_slice_stage_with_frozen_weights(tmp_path):
    folder = save_stage(tmp_path, "slice", prediction_type="v_prediction")
    options = {"pretrained_model_name_or_path": str(folder)}
    unet, scheduler = make_network(arguments("volume", **options), 2)
    assert scheduler.config["prediction_type"] == "v_prediction"
    learnt = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert learnt
    assert not learnt & set(load_part("vae", str(folder), (UNet2DModel,), component="unet")[0].state_dict())
    everything, _ = make_network(arguments("volume", **options, train_spatial=True), 2)
    assert all(parameter.requires_grad for parameter in everything.parameters())
    assert everything.config["window"] == 4


def test_a_pipeline_gives_its_network_and_its_scheduler(tmp_path):
    slices, _ = make_network(arguments("slice", **SMALL), 2)
    InformedSliceUNetModel.from_slice_model(slices).save_pretrained(tmp_path / "unet")
    make_scheduler("gem-ddim").save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text("{}")
    unet, scheduler = make_network(arguments("volume", pretrained_model_name_or_path=str(tmp_path)), 2)
    assert (unet.config["window"], type(scheduler).__name__) == (4, "DDIMScheduler")
    with pytest.raises(FileNotFoundError, match="holds no trained slice_unet"):
        make_network(arguments("generator", pretrained_model_name_or_path=str(tmp_path)), 2)


def test_a_slice_model_must_share_the_diffusion_and_the_rule(tmp_path):
    folder = save_stage(tmp_path, "generator")
    options = {"pretrained_model_name_or_path": "y", "slice_model": str(folder)}
    same = make_scheduler("gem-ddim")
    assert load_slice_model(arguments("volume", pretrained_model_name_or_path="y"), 2, same) is None
    assert load_slice_model(arguments("volume", **options), 2, same).config["in_channels"] == 2
    with pytest.raises(ValueError, match="trained with prediction_type epsilon, the network with v_prediction"):
        load_slice_model(arguments("volume", **options), 2, make_scheduler("gem-ddim", prediction_type="v_prediction"))
    (folder / "run.json").write_text(json.dumps({"model": {"position_rule": "official"}}))
    with pytest.raises(ValueError, match="with the position rule official; give --position_rule official"):
        load_slice_model(arguments("volume", **options), 2, same)
    assert load_slice_model(arguments("volume", **options, position_rule="official"), 2, same)
    with pytest.raises(ValueError, match="this stage needs 4 and 4"):
        load_slice_model(arguments("volume", **options), 4, same)


def test_folders_that_do_not_hold_what_is_needed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--vae .* holds no trained vae"):
        load_part("vae", str(tmp_path), (AutoencoderKL,), component="vae")
    folder = save_stage(tmp_path, "slice")
    with pytest.raises(ValueError, match="holds a UNet2DModel; give a folder with AutoencoderKL"):
        load_part("vae", str(folder), (AutoencoderKL,), component="vae")
    with pytest.raises(FileNotFoundError, match="does not hold the scheduler"):
        load_scheduler_of(tmp_path / "scheduler")


def test_networks_of_other_channels_are_refused(tmp_path):
    folder = str(save_stage(tmp_path, "slice"))
    with pytest.raises(ValueError, match="has 6 input and 2 output channels, this stage needs 12 and 4"):
        make_network(arguments("volume", pretrained_model_name_or_path=folder), 4)


def test_new_networks_are_those_of_the_stage():
    unet, scheduler = make_network(arguments("generator", **SMALL), 2)
    assert unet(torch.randn(1, 2, 4, 4), 1, torch.randn(1, 1, 128)).sample.shape == (1, 2, 4, 4)
    assert scheduler.config["beta_schedule"] == "scaled_linear"
