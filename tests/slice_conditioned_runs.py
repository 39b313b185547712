"""Tiny runs of the slice-conditioned script, in this process or launched."""

from pathlib import Path

import training_runs

SCRIPT = Path(__file__).parents[1] / "training_scripts" / "train_slice_conditioned.py"
TINY_MODEL = ["--block_out_channels", "4,8", "--layers_per_block", "1", "--norm_num_groups", "2"]
TINY_MODEL += ["--num_attention_heads", "2", "--attention_levels", "1", "--max_slices", "6"]
TINY_COHORT = ["--cohort", "mr", "--num_subjects", "3", "--resolution", "16", *TINY_MODEL]


def launch(monkeypatch, *arguments, **options):
    """Start the script with ``accelerate launch``, see :func:`training_runs.launch`."""
    monkeypatch.setattr(training_runs, "SCRIPT", SCRIPT)
    return training_runs.launch(*arguments, **options)
