"""Tiny runs of the informed-slice script, in this process or launched."""

from pathlib import Path

import pytest
import torch
import training_runs
from safetensors.torch import load_file

from voxdiff.training.log import read_log

SCRIPT = Path(__file__).parents[1] / "training_scripts" / "train_informed_slice.py"
COHORT = ["--cohort", "flair", "--num_subjects", "3", "--resolution", "16"]
TINY_UNET = ["--block_out_channels", "4,8", "--layers_per_block", "1", "--norm_num_groups", "2"]
TINY_UNET += ["--attention_head_dim", "4", "--attention_levels", "1"]
TINY_VAE = [
    "--block_out_channels",
    "4,4",
    "--layers_per_block",
    "1",
    "--norm_num_groups",
    "2",
    "--latent_channels",
    "2",
]
TINY_VAE += ["--num_held_out", "1", "--slices_per_volume", "2"]
ANY_AUTOENCODER = "--ignore_autoencoder_report"
STAGES = {
    "autoencoder": TINY_VAE,
    "slice": [*TINY_UNET, "--window", "4", ANY_AUTOENCODER],
    "generator": [*TINY_UNET, "--cross_attention_dim", "8", ANY_AUTOENCODER],
    "volume": ["--window", "4", ANY_AUTOENCODER],
}


def run_stage(folder, cache, stage, *arguments, out=None, vae=None, start=None, data=COHORT):
    """Run a stage in this process, two steps unless told otherwise, and return its output folder."""
    given = ["--stage", stage, "--train_batch_size", "2", *STAGES[stage], *arguments, *data]
    given += ["--cache_dir", cache] if "--cohort" in data else []
    given += ["--vae", vae] if vae else []
    given += ["--pretrained_model_name_or_path", start] if start else []
    output_dir = folder / (out or stage)
    with pytest.MonkeyPatch.context() as monkeypatch:
        training_runs.run_script(monkeypatch, output_dir, *given, script=SCRIPT)
    return output_dir


def launch(monkeypatch, *arguments, **options):
    """Start the script with ``accelerate launch``, see :func:`training_runs.launch`."""
    monkeypatch.setattr(training_runs, "SCRIPT", SCRIPT)
    return training_runs.launch(*arguments, **options)


def run_record(output_dir, step=4):
    """Weights, optimiser state and losses of a run, as a flat dict of tensors and numbers."""
    folder = Path(output_dir) / f"checkpoint-{step}"
    state = torch.load(folder / "optimizer.bin", weights_only=True)["state"]
    record = {f"{index}.{name}": value for index, moments in state.items() for name, value in moments.items()}
    for file in folder.glob("*/diffusion_pytorch_model.safetensors"):
        record |= {f"{file.parent.name}.{name}": tensor for name, tensor in load_file(file).items()}
    log = read_log(Path(output_dir) / "training_log.jsonl")
    return record | {f"{line['step']}.{key}": line[key] for line in log for key in ("loss", "learning_rate")}


def assert_same_run(left, right, tolerance=0.0, **where):
    """Two runs are equal, bit for bit or within a tolerance."""
    left, right = run_record(left, **where), run_record(right, **where)
    assert left.keys() == right.keys()
    worst = {name: float((torch.as_tensor(left[name]) - torch.as_tensor(right[name])).abs().max()) for name in left}
    name = max(worst, key=worst.__getitem__)
    assert worst[name] <= tolerance, f"{name} differs by {worst[name]}"
