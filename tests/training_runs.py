"""Tiny training runs for the tests: in this process, and by the training script."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import make_pipeline
from safetensors.torch import load_file
from torch.utils.data import Dataset

from voxdiff.training import Trainer, TrainingArguments, make_accelerator
from voxdiff.training.log import read_log
from voxdiff.training.objective_wavelet import WaveletDiffusionObjective

SCRIPT = Path(__file__).parents[1] / "training_scripts" / "train_wavelet_diffusion.py"
TINY_MODEL = ["--block_out_channels", "4,8", "--layers_per_block", "1", "--norm_num_groups", "2"]
TINY_COHORT = ["--cohort", "mr", "--num_subjects", "3", "--resolution", "16", *TINY_MODEL]


class RandomVolumes(Dataset):
    """Five volumes of noise."""

    def __init__(self, columns=("image",), size=(16, 16, 8)):
        generator = torch.Generator().manual_seed(1)
        self.items = [{name: torch.rand(1, *size, generator=generator) * 2 - 1 for name in columns} for _ in range(5)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def make_trainer(output_dir, *, pipeline=None, dataset=None, objective=None, inputs=None, **arguments):
    """A trainer for four steps of two samples, anything changed by ``arguments``."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    defaults = {"max_train_steps": 4, "logging_steps": 1, "checkpointing_steps": 2, "learning_rate": 1e-2}
    args = TrainingArguments(output_dir=str(output_dir), **{**defaults, **arguments})
    pipeline = pipeline or make_pipeline()
    accelerator = make_accelerator(args)
    return Trainer(
        accelerator,
        pipeline,
        "unet",
        objective or WaveletDiffusionObjective(pipeline),
        dataset or RandomVolumes(pipeline.output_names + pipeline.condition_names),
        args,
        validation_inputs=inputs,
    )


def load_script(script=None):
    """A training script as a module; that of wavelet diffusion unless told otherwise."""
    script = script or SCRIPT
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_script(monkeypatch, output_dir, *arguments, script=None):
    """Run a script in this process: two steps unless told otherwise."""
    script = script or SCRIPT
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    options = {"--max_train_steps": "2", "--logging_steps": "1", "--output_dir": str(output_dir)}
    short = [word for name, value in options.items() if name not in arguments for word in (name, value)]
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments), *short])
    module = load_script(script)
    with module.one_sentence_errors():
        module.main()


def make_runner(monkeypatch, folder, cache, script=None):
    """A function that runs a script into a subfolder and returns it; its simulated subjects come from the cache."""

    def run(*arguments, out="out"):
        if "--cohort" in arguments:
            arguments = [*arguments, "--cache_dir", cache]
        run_script(monkeypatch, folder / out, *arguments, script=script)
        return folder / out

    return run


def launch(*arguments, processes=1, **environment):
    """Start the script with ``accelerate launch`` as the head of its own process group."""
    several = ["--multi_gpu"] if processes > 1 else []
    command = [sys.executable, "-m", "accelerate.commands.launch", *several, "--num_processes", str(processes)]
    settings = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [*command, "--main_process_port", "0", str(SCRIPT), *map(str, arguments)],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """Wait for :func:`launch`; returns what was printed, fails unless all went well."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def run_record(output_dir, checkpoint="checkpoint-4"):
    """Weights, average, optimiser state and log of a run, as a flat dict of tensors and numbers."""
    folder = Path(output_dir) / checkpoint
    optimizer = torch.load(folder / "optimizer.bin", weights_only=True)["state"]
    record = {f"{index}.{name}": value for index, state in optimizer.items() for name, value in state.items()}
    for model in ("unet", "unet_ema"):
        tensors = load_file(folder / model / "diffusion_pytorch_model.safetensors")
        record |= {f"{model}.{name}": tensor for name, tensor in tensors.items()}
    log = read_log(Path(output_dir) / "training_log.jsonl")
    return record | {f"{line['step']}.{key}": line[key] for line in log for key in ("loss", "learning_rate")}


def assert_same_run(left, right, tolerance=0.0, **where):
    """Two runs are equal, bit for bit or within a tolerance."""
    left, right = run_record(left, **where), run_record(right, **where)
    assert left.keys() == right.keys()
    worst = {name: float((torch.as_tensor(left[name]) - torch.as_tensor(right[name])).abs().max()) for name in left}
    name = max(worst, key=worst.__getitem__)
    assert worst[name] <= tolerance, f"{name} differs by {worst[name]}"


def write_volumes(folder, names, *, size=(16, 16, 16), spacing=3.0, low=0.0, high=1.0):
    """Write random volumes as NIfTI."""
    generator = np.random.default_rng(0)
    for name in names:
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = generator.uniform(low, high, size).astype(np.float32)
        nib.save(nib.Nifti1Image(values, np.diag([spacing, spacing, spacing, 1.0])), path)


def truncate(path):
    """Cut a file in half, as a broken download does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def read_json(path):
    return json.loads(Path(path).read_text())
