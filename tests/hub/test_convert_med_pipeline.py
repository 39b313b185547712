"""Two official checkpoints into one folder, with tensors of the golden networks in the official containers."""

from types import SimpleNamespace

import pytest
import torch
from goldens import load_golden

import voxdiff
from voxdiff.hub.convert_med_pipeline import convert_med_checkpoints

OVERRIDES = {
    "autoencoder_overrides": {"norm_num_groups": 4, "patch_size": 16},
    "biflownet_overrides": {"norm_num_groups": 6, "num_dit_heads": 4},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The published layouts: a Lightning checkpoint, and averaged weights beside the arguments."""
    folder = tmp_path_factory.mktemp("official")
    _, autoencoder, *_ = load_golden("med_autoencoder_8x")
    _, biflownet, *_ = load_golden("med_biflownet_class")
    torch.save({"state_dict": autoencoder, "hyper_parameters": SimpleNamespace(lr=1)}, folder / "ae.ckpt")
    torch.save({"ema": biflownet, "model": {}, "args": SimpleNamespace(epochs=1)}, folder / "unet.pt")
    return folder / "ae.ckpt", folder / "unet.pt"


def test_both_checkpoints_become_one_folder_that_generates(checkpoints, tmp_path):
    out = convert_med_checkpoints(*checkpoints, tmp_path / "out", **OVERRIDES)
    pipe = voxdiff.Pipeline.from_pretrained(out)
    assert isinstance(pipe, voxdiff.PatchVolumeLDMPipeline)
    assert pipe.vae.config.latent_max == pytest.approx(pipe.vae.quantize.embedding.max().item())
    knee = pipe.volume_classes["MRKnee"]
    assert (knee.id, knee.processor.size) == (6, (320, 320, 64))
    random = torch.Generator().manual_seed(0)
    image = pipe("MRKnee", size=(64, 64, 64), num_inference_steps=1, generator=random).volumes[0]
    assert image.shape == (64, 64, 64)
    card = (out / "README.md").read_text()
    assert "convert med unet.pt OUT --autoencoder ae.ckpt" in card and "Not for clinical use" in card
    assert (out / "pipeline.py").read_text().count("PatchVolumeLDMPipeline") == 1


def test_checkpoints_of_two_models_are_refused_and_nothing_is_written(checkpoints, tmp_path):
    torch.save(load_golden("med_autoencoder_4x")[1], tmp_path / "ae4.ckpt")
    overrides = {**OVERRIDES, "autoencoder_overrides": {"norm_num_groups": 6, "patch_size": 16}}
    with pytest.raises(ValueError, match="compresses 4 times and the BiFlowNet has tokens of 1"):
        convert_med_checkpoints(tmp_path / "ae4.ckpt", checkpoints[1], tmp_path / "out", **overrides)
    with pytest.raises(ValueError, match="is an autoencoder, not a BiFlowNet"):
        convert_med_checkpoints(checkpoints[0], tmp_path / "ae4.ckpt", tmp_path / "out", **OVERRIDES)
    assert [path.name for path in tmp_path.iterdir()] == ["ae4.ckpt"]
