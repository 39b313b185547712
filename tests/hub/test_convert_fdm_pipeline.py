"""A checkpoint in the official container becomes a folder that generates."""

import json
from argparse import Namespace
from functools import cache

import pytest
import torch
from goldens import load_golden

import voxdiff
from voxdiff.hub.convert import convert_checkpoint
from voxdiff.hub.convert_fdm_pipeline import convert_fdm_checkpoint

load = cache(load_golden)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "ema_0.9999_200000.pt"
    torch.save({"state_dict": load("cdpm_unet")[1], "config": {"num_heads": 4}, "step": 200_000}, path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    return convert_fdm_checkpoint(checkpoint, tmp_path_factory.mktemp("converted") / "out")


def test_the_checkpoint_becomes_a_folder_that_generates(folder):
    pipe = voxdiff.Pipeline.from_pretrained(folder)
    assert isinstance(pipe, voxdiff.SliceConditionedPipeline)
    assert torch.equal(pipe.unet.conv_out.weight, load("cdpm_unet")[1]["out.2.weight"])
    config = pipe.scheduler.config
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (1e-4, 2e-2, "linear")
    assert (config.prediction_type, type(pipe.scheduler).__name__) == ("epsilon", "DPMSolverMultistepScheduler")
    pipe.set_progress_bar_config(disable=True)
    random = torch.Generator().manual_seed(0)
    image = pipe(size=(16, 16, 3), num_inference_steps=1, generator=random).volumes[0]
    assert image.shape == (16, 16, 3)
    assert (folder / "pipeline.py").read_text().count("SliceConditionedPipeline") == 1


def test_the_card_tells_where_the_weights_come_from(folder):
    card = (folder / "README.md").read_text()
    for words in (
        "`ema_0.9999_200000.pt`",
        "SHA-256",
        "license: unknown",
        "Not for clinical use",
        "size=(128, 128, 128), ",
    ):
        assert words in card


def test_what_the_network_was_trained_on_can_be_given(checkpoint, tmp_path):
    processor = voxdiff.VolumeProcessor(intensity="percentile", low=0.1, high=99.9, size=(16, 8, 16), spacing=(1, 2, 3))
    out = convert_fdm_checkpoint(
        checkpoint,
        tmp_path / "out",
        processor=processor,
        scheduler="fdm",
        slice_axis=1,
        unet_overrides={"num_attention_heads": 8},
    )
    index = json.loads((out / "model_index.json").read_text())
    assert index["slice_axis"] == 1 and voxdiff.VolumeProcessor.from_dict(index["processor"]) == processor
    pipe = voxdiff.Pipeline.from_pretrained(out)
    assert type(pipe.scheduler).__name__ == "DDPMScheduler" and pipe.unet.config.num_attention_heads == 8
    assert "pipe(num_inference_steps=25)" in (out / "README.md").read_text()


@pytest.mark.parametrize("kind", [dict, Namespace])
def test_the_settings_of_the_training_are_read(tmp_path, kind):
    settings = {"num_heads": 8, "max_frames": 9, "noise_schedule": "cosine", "predict_xstart": True, "lr": 1e-4}
    settings["sigma_small"] = True
    torch.save({"state_dict": load("cdpm_unet")[1], "config": kind(**settings)}, tmp_path / "weights.pt")
    pipe = voxdiff.Pipeline.from_pretrained(convert_fdm_checkpoint(tmp_path / "weights.pt", tmp_path / "out"))
    assert (pipe.config.max_slices, pipe.config.stage_size, pipe.config.context_size) == (9, 4, 5)
    assert pipe.unet.config.num_attention_heads == 8
    config = pipe.scheduler.config
    assert (config.beta_schedule, config.prediction_type) == ("squaredcos_cap_v2", "sample")
    assert voxdiff.schedulers.swap_scheduler(pipe.scheduler, "ddpm").config.variance_type == "fixed_small"
    given = {"max_slices": 6, "unet_overrides": {"num_attention_heads": 4}}
    pipe = voxdiff.Pipeline.from_pretrained(convert_fdm_checkpoint(tmp_path / "weights.pt", tmp_path / "own", **given))
    assert (pipe.config.max_slices, pipe.unet.config.num_attention_heads) == (6, 4)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"diffusion_steps": 500}, "trained with 500 steps of the schedule 'linear'; only 1000 of"),
        ({"max_frames": 1}, "config has max_frames=1; give a value such as FDM's 20"),
        ({"num_heads": None}, "config has num_heads=None; give a value such as FDM's 4"),
        ([1], "The settings 'config' of .* cannot be read; save them as a dict"),
    ],
)
def test_settings_that_cannot_be_followed_are_one_sentence(tmp_path, config, reason):
    torch.save({"state_dict": load("cdpm_unet")[1], "config": config}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=reason):
        convert_fdm_checkpoint(tmp_path / "weights.pt", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "content, options, reason",
    [
        ({"step": 3}, {}, "holds 'step', which is no tensor"),
        ("gem_pseudo3d", {}, "has volumetric layers"),
        ("rgb", {}, "network takes 3 and gives 3 channels a slice"),
        ("cdpm_unet", {"scheduler": "gem"}, "Scheduler preset 'gem' is unknown"),
        ("cdpm_unet", {"unet_overrides": {"in_channels": 1}}, "'in_channels', which it does not take"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(content, options, reason, tmp_path):
    state = content
    if content == "rgb":
        state = {**load("cdpm_unet")[1], "input_blocks.0.0.weight": torch.zeros(32, 4, 3, 3)}
        state |= {"out.2.weight": torch.zeros(3, 32, 3, 3), "out.2.bias": torch.zeros(3)}
    elif isinstance(content, str):
        state = load(content)[1]
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=reason) as error:
        convert_fdm_checkpoint(tmp_path / "weights.pt", tmp_path / "out", **options)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_the_general_converter_names_this_one(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="`voxdiff convert fdm` makes a pipeline of the checkpoints of FDM"):
        convert_checkpoint("fdm", checkpoint, tmp_path / "out", preset="")
