"""Tiny training runs of autoencoders for the tests: in this process, and by the training script."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from autoencoders import make_autoencoder
from safetensors.torch import load_file
from torch.utils.data import Dataset

from voxdiff.training import Trainer, TrainingArguments, make_accelerator
from voxdiff.training.batches import SampleNoise
from voxdiff.training.discriminator import PatchDiscriminator3D
from voxdiff.training.log import read_log
from voxdiff.training.objective_autoencoder import AutoencoderObjective
from voxdiff.training.random_crops import RandomCrops

SCRIPT = Path(__file__).parents[1] / "training_scripts" / "train_patch_volume_autoencoder.py"
TINY_DATA = ["--cohort", "mr", "--grids", "16", "--num_subjects", "5", "--num_held_out", "1", "--train_batch_size", "2"]
TINY_NETWORK = ["--block_out_channels", "4,4", "--norm_num_groups", "2", "--latent_channels", "4"]
TINY_NETWORK += ["--num_attention_heads", "1", "--attention_head_dim", "4"]
TINY_CODEBOOK = ["--num_embeddings", "16", "--patch_size", "8"]
TINY_LOSSES = ["--discriminator_channels", "2", "--discriminator_layers", "1", "--adversarial_start", "0"]
TINY_RUN = [*TINY_DATA, *TINY_NETWORK, *TINY_CODEBOOK, *TINY_LOSSES]


class SmoothVolumes(Dataset):
    """Five volumes of a few smooth blobs in [-1, 1]."""

    def __init__(self, size=(16, 16, 16)):
        generator = torch.Generator().manual_seed(1)
        coarse = torch.rand(5, 1, 4, 4, 4, generator=generator) * 2 - 1
        self.volumes = torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")

    def __len__(self):
        return len(self.volumes)

    def __getitem__(self, index):
        return {"volume": self.volumes[index]}


def make_noise(count, seed=0, step=0):
    """The random draws of a batch of that many samples."""
    return SampleNoise(seed, {"step": [step] * count, "place": list(range(count))})


def make_untrained():
    """An autoencoder without a latent range: its codebook is about to move."""
    vae = make_autoencoder()
    vae.register_to_config(latent_min=None, latent_max=None)
    return vae


def make_discriminator():
    torch.manual_seed(1)
    return PatchDiscriminator3D(base_channels=2, num_layers=1)


def make_objective(vae, **settings):
    """On cubes of 8 voxels against a discriminator, without a perceptual loss."""
    settings = {"crops": RandomCrops((8, 8, 8)), "adversary": make_discriminator(), **settings}
    return AutoencoderObjective(vae, **settings)


def make_trainer(output_dir, *, vae=None, objective=None, validate=None, **arguments):
    """A trainer for four steps of two samples, anything changed by ``arguments``."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    defaults = {"max_train_steps": 4, "logging_steps": 1, "checkpointing_steps": 2, "learning_rate": 1e-3}
    args = TrainingArguments(output_dir=str(output_dir), **{"use_ema": False, **defaults, **arguments})
    vae = vae or make_untrained()
    accelerator = make_accelerator(args)
    objective = objective or make_objective(vae)
    return Trainer(accelerator, vae, None, objective, SmoothVolumes(), args, validate=validate)


def run_record(output_dir, checkpoint="checkpoint-4"):
    """Weights, optimisers and log of a run, as a flat dict of tensors and numbers."""
    folder, record = Path(output_dir) / checkpoint, {}
    for file in ("optimizer.bin", "optimizer_1.bin"):
        state = torch.load(folder / file, weights_only=True)["state"]
        record |= {f"{file}.{index}.{name}": value for index in state for name, value in state[index].items()}
    for model in ("model", "adversary"):
        tensors = load_file(folder / model / "diffusion_pytorch_model.safetensors")
        record |= {f"{model}.{name}": tensor for name, tensor in tensors.items()}
    log = read_log(Path(output_dir) / "training_log.jsonl")
    untimed = [(line["step"], key, value) for line in log for key, value in line.items() if key != "seconds_per_step"]
    return record | {f"{step}.{key}": value for step, key, value in untimed}


def assert_same_run(left, right, tolerance=0.0, moments=True, **where):
    """Two runs are equal, bit for bit or within a tolerance, relative for values above 1; Adam's moments on request."""
    left, right = run_record(left, **where), run_record(right, **where)
    assert left.keys() == right.keys()
    if not moments:
        left = {name: value for name, value in left.items() if not name.startswith("optimizer")}
    worst = {name: difference(left[name], right[name]) for name in left}
    name = max(worst, key=worst.__getitem__)
    assert worst[name] <= tolerance, f"{name} differs by {worst[name]}"


def difference(left, right):
    left, right = (torch.as_tensor(value, dtype=torch.float64) for value in (left, right))
    return float((left - right).abs().max() / left.abs().max().clamp(min=1))


def launch(*arguments, processes):
    """Run the script with ``accelerate launch``; returns what was printed."""
    several = ["--multi_gpu"] if processes > 1 else []
    command = [sys.executable, "-m", "accelerate.commands.launch", *several, "--num_processes", str(processes)]
    finished = subprocess.run(
        [*command, "--main_process_port", "0", str(SCRIPT), *map(str, arguments)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout
