"""Tiny runs of the latent diffusion script, in this process or launched."""

from pathlib import Path

import training_runs
from autoencoders import make_autoencoder, make_kl_autoencoder

SCRIPT = Path(__file__).parents[1] / "training_scripts" / "train_patch_volume_ldm.py"
TINY_BIFLOWNET = ["--block_out_channels", "6,6", "--norm_num_groups", "3", "--sub_volume_size", "4"]
TINY_BIFLOWNET += ["--num_dit_heads", "2", "--num_attention_heads", "2", "--attention_head_dim", "4"]
TINY_UNET = ["--unet", "unet3d", "--block_out_channels", "4,8", "--layers_per_block", "1", "--norm_num_groups", "2"]
ANY_AUTOENCODER = "--ignore_autoencoder_report"


def save_autoencoder(folder, *, kl=False):
    """An untrained autoencoder as a training script leaves it."""
    (make_kl_autoencoder if kl else make_autoencoder)().save_pretrained(folder)
    return folder


def run_ldm(monkeypatch, output_dir, *arguments):
    """Run the script in this process: two steps unless told otherwise."""
    monkeypatch.setattr(training_runs, "SCRIPT", SCRIPT)
    training_runs.run_script(monkeypatch, output_dir, *arguments)


def launch_ldm(monkeypatch, *arguments, **options):
    """Start the script with ``accelerate launch``, see :func:`training_runs.launch`."""
    monkeypatch.setattr(training_runs, "SCRIPT", SCRIPT)
    return training_runs.launch(*arguments, **options)
