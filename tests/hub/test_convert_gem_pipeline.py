"""The official checkpoints into one folder, with tensors of the golden networks in the official containers."""

import json
from functools import cache
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from gem_checkpoints import checkpoint_state
from goldens import load_golden

import voxdiff
from voxdiff.hub.convert_gem_pipeline import convert_gem_checkpoints

load = cache(load_golden)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The published layouts: Lightning checkpoints, the autoencoder inside each and in a file of its own."""
    folder = tmp_path_factory.mktemp("official")
    states = {name: load(f"gem_{name}")[1] for name in ("pseudo3d", "slice_ldm", "vae")}
    averages = {key: tensor + 1 for key, tensor in states["slice_ldm"].items()}
    spatial = {
        key: tensor for key, tensor in states["pseudo3d"].items() if "_tem." not in key and "temporal" not in key
    }
    lightning = {
        "stage2": checkpoint_state(states["pseudo3d"], states["vae"]),
        "slice": checkpoint_state(states["slice_ldm"], states["vae"], averages=averages, copies_vae=False),
        "stage1": checkpoint_state(spatial, states["vae"]),
        "kl-f8": {**{key: tensor * 2 for key, tensor in states["vae"].items()}, "loss.logvar": torch.zeros(1)},
    }
    for name, state in lightning.items():
        torch.save({"state_dict": state, "callbacks": {SimpleNamespace: 1}, "epoch": 3}, folder / f"{name}.ckpt")
    torch.save(states["pseudo3d"], folder / "bare.pt")
    return folder


@pytest.fixture(scope="module")
def folder(checkpoints, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    return convert_gem_checkpoints(checkpoints / "stage2.ckpt", out, slice_path=checkpoints / "slice.ckpt")


def test_the_checkpoints_become_one_folder_that_generates(folder):
    pipe = voxdiff.Pipeline.from_pretrained(folder)
    assert isinstance(pipe, voxdiff.InformedSlicePipeline)
    assert pipe.config.mask_values == pytest.approx({"-1": -5 / 3, "0": -1, "1": -1 / 3, "2": 1 / 3, "3": 1})
    assert pipe.config.position_rule == "official" and pipe.unet.config.window == 16
    config = pipe.scheduler.config
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (8.5e-4, 1.2e-2, "scaled_linear")
    pipe.set_progress_bar_config(disable=True)
    labels = np.random.default_rng(0).integers(-1, 4, (64, 64, 5)).astype(np.int16)
    mask = nib.Nifti1Image(labels, np.diag([1.0, 1, 3, 1]))
    random = torch.Generator().manual_seed(0)
    image = pipe(mask, num_inference_steps=1, generator=random).volumes[0]
    assert image.shape == (64, 64, 5) and np.allclose(image.affine, mask.affine)
    assert (folder / "pipeline.py").read_text().count("InformedSlicePipeline") == 1


def test_a_volume_is_seen_as_the_official_slices(folder):
    config = json.loads((folder / "model_index.json").read_text())
    stored = np.zeros((4, 6, 5), np.float32)
    stored[3, 0] = 1
    seen, _ = voxdiff.VolumeProcessor.from_dict(config["processor"]).preprocess(nib.Nifti1Image(stored, np.eye(4)))
    assert torch.equal(seen[0, 0, :, :, 2] > 0, torch.from_numpy(stored[:, :, 2].T > 0))


def test_the_card_tells_what_the_model_takes(folder, checkpoints, tmp_path):
    card = (folder / "README.md").read_text()
    for words in ("the order of MSD Task01", "SHA-256 of `stage2.ckpt`", "license: unknown", "Not for clinical use"):
        assert words in card
    assert 'pipe("mask.nii.gz", num_inference_steps=200, eta=1.0)' in card
    out = convert_gem_checkpoints(checkpoints / "stage2.ckpt", tmp_path / "out", scheduler="gem-dpm++")
    assert voxdiff.Pipeline.from_pretrained(out).slice_unet is None
    call = 'pipe("mask.nii.gz", informed_slice="other_subject.nii.gz", num_inference_steps=25)'
    assert call in (out / "README.md").read_text()


def test_parts_may_come_from_other_files(checkpoints, tmp_path):
    out = convert_gem_checkpoints(
        checkpoints / "bare.pt",
        tmp_path / "out",
        vae_path=checkpoints / "kl-f8.ckpt",
        slice_path=checkpoints / "slice.ckpt",
        slice_weights="ema",
        preset="gem-abdomen",
        scheduler="gem-dpm++",
        vae_overrides={"scaling_factor": 0.5},
    )
    pipe = voxdiff.Pipeline.from_pretrained(out)
    _, vae, *_ = load("gem_vae")
    _, generator, *_ = load("gem_slice_ldm")
    assert torch.equal(pipe.vae.encoder.conv_in.weight, vae["encoder.conv_in.weight"] * 2)
    assert torch.equal(pipe.slice_unet.conv_out.weight, generator["out.2.weight"] + 1)
    assert pipe.vae.config.scaling_factor == 0.5
    assert pipe.config.mask_values == {"0": -1, "1": -0.5, "2": 0, "3": 0.5, "4": 1}
    assert type(pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"


@pytest.mark.parametrize(
    "stage2, options, reason",
    [
        ("bare.pt", {}, r"bare.pt' has no autoencoder .* KL-f8"),
        ("stage1.ckpt", {}, "has no volumetric layers"),
        ("slice.ckpt", {}, "has cross-attention .* convert it with 'gem3d-slice'"),
        (
            "stage2.ckpt",
            {"preset": "brats-128"},
            "'brats-128' is unknown; for 'gem' choose one of gem-brats, gem-abdomen",
        ),
        ("stage2.ckpt", {"slice_weights": "ema"}, "of no use without slice_path"),
        ("stage2.ckpt", {"unet_overrides": {"weights": "ema"}}, "left over from stage 1"),
        ("stage2.ckpt", {"scheduler": "gem"}, "Scheduler preset 'gem' is unknown"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(stage2, options, reason, checkpoints, tmp_path):
    with pytest.raises(ValueError, match=reason) as error:
        convert_gem_checkpoints(checkpoints / stage2, tmp_path / "out", **options)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    assert not any(tmp_path.iterdir())


def test_the_generator_cannot_be_the_volumetric_model(checkpoints, tmp_path):
    with pytest.raises(ValueError, match=r"has volumetric layers .* convert it with 'gem3d-stage2'"):
        convert_gem_checkpoints(checkpoints / "stage2.ckpt", tmp_path / "out", slice_path=checkpoints / "stage2.ckpt")
