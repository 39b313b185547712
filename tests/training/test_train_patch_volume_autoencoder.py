import re

import pytest
import torch
from autoencoder_runs import (
    SCRIPT,
    TINY_CODEBOOK,
    TINY_DATA,
    TINY_LOSSES,
    TINY_NETWORK,
    TINY_RUN,
    assert_same_run,
    launch,
)
from safetensors.torch import load_file
from training_runs import load_script, make_runner, read_json, write_volumes

import voxdiff
from voxdiff.training.log import read_log
from voxdiff.workflows.autoencoder_report import read_autoencoder_report


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Simulated subjects that the tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(monkeypatch, tmp_path, cache):
    return make_runner(monkeypatch, tmp_path, cache, SCRIPT)


def changed_parts(before, after):
    old, new = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (before, after))
    return {name.split(".")[0] for name, tensor in new.items() if not torch.equal(tensor, old[name])}


def test_both_stages(run):
    patch = run(*TINY_RUN, "--validation_steps", "2", "--num_validation_volumes", "1", out="patch")
    vae = voxdiff.AutoencoderPatchVolume.from_pretrained(patch)
    assert vae.config["latent_max"] == vae.quantize.embedding.max() and vae.quantize.initialized
    assert (vae.config["axis_order"], vae.config["patch_size"]) == ("xyz", 8)
    report = read_autoencoder_report(patch)
    assert report["volumes"] == 1 and report["psnr"] > 0
    assert (patch / "autoencoder_report.png").exists()
    assert (patch / "validation" / "step-000002.png").exists()
    (record, *_) = read_log(patch / "training_log.jsonl")
    assert {"l1", "commitment", "perplexity", "perceptual", "adversarial", "discriminator"} <= set(record)
    settings = read_json(patch / "run.json")["training"]
    assert (settings["learning_rate"], settings["adam_beta1"], settings["use_ema"]) == (3e-4, 0.5, False)

    start = ["--pretrained_model_name_or_path", patch, "--discriminator", patch / "checkpoint-2" / "adversary"]
    volume = run("--stage", "volume", *TINY_DATA, *start, out="volume")
    assert read_json(volume / "run.json")["training"]["learning_rate"] == 3e-5
    assert changed_parts(patch, volume) == {"decoder", "post_quant_conv"}
    assert read_json(volume / "config.json")["latent_max"] == vae.config["latent_max"]


def test_plain_autoencoders(run):
    vqgan = run(*TINY_DATA, *TINY_NETWORK, *TINY_LOSSES, "--patch_size", "none", "--num_embeddings", "8", out="vqgan")
    assert voxdiff.AutoencoderPatchVolume.from_pretrained(vqgan).config["patch_size"] is None
    without = ["--adversarial_weight", "0", "--perceptual_weight", "0", "--crop_size", "8"]
    kl = run(*TINY_DATA, *TINY_NETWORK, "--autoencoder", "kl", *without, out="kl")
    vae = voxdiff.AutoencoderKL3D.from_pretrained(kl)
    assert vae.config["latent_std"] == pytest.approx(read_autoencoder_report(kl)["latent_std"])
    assert not (kl / "checkpoint-2" / "adversary").exists()


def test_the_volume_stage_of_a_normal_posterior_leaves_its_encoder(run):
    without = ["--adversarial_weight", "0", "--perceptual_weight", "0"]
    patch = run(*TINY_DATA, *TINY_NETWORK, "--autoencoder", "kl", "--patch_size", "8", *without, out="patch")
    start = ["--stage", "volume", "--pretrained_model_name_or_path", patch]
    volume = run(*TINY_DATA, *without, *start, out="volume")
    assert changed_parts(patch, volume) == {"decoder", "post_quant_conv"}


def test_several_classes_and_grids(run, capsys):
    two = ["--cohort", "mr,ct", "--grids", "mr=16;ct=16,16,8"]
    run(*TINY_RUN, *two)
    assert "8 volumes, seen as 8x8x8" in capsys.readouterr().out


def test_a_finished_run_goes_on_as_if_it_had_not_stopped(run, tmp_path):
    settings = [*TINY_RUN, "--checkpointing_steps", "2"]
    run(*settings, "--max_train_steps", "4", out="whole")
    run(*settings, out="halves")
    run(*settings, "--max_train_steps", "4", "--resume_from_checkpoint", "latest", out="halves")
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_from_files_with_their_intensities(run, tmp_path):
    write_volumes(tmp_path / "data", [f"{name}.nii.gz" for name in "abcd"], low=-1000, high=500)
    window = ["--intensity", "window", "--low", "-1000", "--high", "500"]
    options = ["--num_held_out", "1", "--train_batch_size", "2", *TINY_NETWORK, *TINY_CODEBOOK, *TINY_LOSSES]
    out = run("--train_data_dir", tmp_path / "data", *window, *options)
    assert read_autoencoder_report(out)["volumes"] == 1
    assert len(list((out / "cache").iterdir())) == 4


MISTAKES = {
    "no data": (TINY_NETWORK, "Give the training data"),
    "stage": ([*TINY_RUN, "--stage", "both"], "--stage is 'both'"),
    "volume stage of nothing": ([*TINY_RUN, "--stage", "volume"], "--stage volume needs the patch stage"),
    "no model": ([*TINY_DATA, "--pretrained_model_name_or_path", "nosuch"], "There is no model 'nosuch'"),
    "no grid": ([*TINY_RUN[:2], *TINY_RUN[4:]], "give --grids, such as 64"),
    "fewer than the batch": ([*TINY_RUN, "--train_batch_size", "5"], "A grid has 4 volumes .* fewer than a batch of 5"),
    "all held out": ([*TINY_RUN, "--num_held_out", "5"], "There are 5 volumes .* 5 are held out"),
    "grid": ([*TINY_RUN, "--patch_size", "32"], r"Crops of \(32, 32, 32\) voxels do not fit"),
    "patch": ([*TINY_RUN, "--patch_size", "7"], "patch_size is 7, .*choose a multiple of 2"),
    "groups": ([*TINY_RUN, "--norm_num_groups", "3"], "choose norm_num_groups"),
    "share": ([*TINY_RUN, "--perceptual_share", "2"], "share of slices .* is 2.0"),
    "vgg": ([*TINY_RUN, "--lpips_weights", "nosuch.safetensors"], "nosuch.safetensors"),
    "discriminator": (
        [*TINY_DATA, *TINY_NETWORK, *TINY_CODEBOOK, "--discriminator", "nosuch"],
        "nosuch has no config.json; give a folder",
    ),
    "hub": ([*TINY_RUN, "--push_to_hub", "--hub_model_id", "o/n"], "published with its diffusion model"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(run, tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert re.search(message, str(stop.value.code)), stop.value.code
    assert str(stop.value.code).startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_stage_does_not_go_on_with_the_other_or_with_another_autoencoder(run):
    patch = run(*TINY_RUN)
    start = ["--pretrained_model_name_or_path", patch, "--resume_from_checkpoint", "latest"]
    with pytest.raises(SystemExit, match="latent_min None"):
        run("--stage", "volume", *TINY_DATA, *TINY_LOSSES, *start)
    with pytest.raises(SystemExit, match="num_embeddings 16, this run has 8"):
        run(*TINY_RUN, "--num_embeddings", "8", "--resume_from_checkpoint", "latest")


def test_every_option_is_read_by_something():
    script = load_script(SCRIPT)
    package = SCRIPT.parents[1] / "src" / "voxdiff" / "training"
    arguments = (package / "autoencoder_arguments.py").read_text()
    network, losses = (
        re.findall(r'"(\w+)"', arguments.split(name)[1].split(")")[0]) for name in ("_NETWORK =", "_LOSSES =")
    )
    lists, source = [*network, *(f"{loss}_weight" for loss in losses)], SCRIPT.read_text() + arguments
    for name in script.AutoencoderArguments.__dataclass_fields__:
        read = re.search(rf"(self|model)\.{name}\b", source) or name in lists
        assert read, f"nothing reads --{name}"


@pytest.mark.slow
def test_two_processes_are_one(tmp_path, cache):
    """Codebook and batch norm see both halves of the batch."""
    # A large epsilon, so that Adam does not turn rounding errors of tiny gradients into steps; the gradients themselves
    # differ by more than the weights, because the perceptual loss divides by the norm of flat features
    settings = ["--cache_dir", cache, "--max_train_steps", "4", "--adam_epsilon", "1e-2", "--logging_steps", "1"]
    launch(*TINY_RUN, *settings, "--output_dir", tmp_path / "one", processes=1)
    printed = launch(*TINY_RUN, *settings, "--train_batch_size", "1", "--output_dir", tmp_path / "two", processes=2)
    assert "2 process(es)" in printed
    assert_same_run(tmp_path / "one", tmp_path / "two", tolerance=2e-6, moments=False)
