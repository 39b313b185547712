"""Official checkpoints into voxdiff: a state dict into a model, a checkpoint file into a pipeline folder."""

from pathlib import Path
from typing import Any

import torch

from voxdiff.hub.card import conversion_card
from voxdiff.hub.convert_fdm import FDM
from voxdiff.hub.convert_gem import SLICE, STAGE1, STAGE2
from voxdiff.hub.convert_kl_f8 import KL_F8
from voxdiff.hub.convert_med_autoencoder import MED_AUTOENCODER, MED_DISCRIMINATOR
from voxdiff.hub.convert_med_biflownet import MED_BIFLOWNET
from voxdiff.hub.convert_wdm import CWDM, WDM
from voxdiff.hub.new_folder import file_sha256, new_folder, require_free, write_pipeline_file
from voxdiff.hub.presets import build_pipeline, find_preset
from voxdiff.hub.state_dicts import Converter, StateDict, read_checkpoint

CONVERTERS: dict[str, Converter] = {
    "wdm": WDM,
    "cwdm": CWDM,
    "med-autoencoder": MED_AUTOENCODER,
    "med-discriminator": MED_DISCRIMINATOR,
    "med-biflownet": MED_BIFLOWNET,
    "gem3d-stage1": STAGE1,
    "gem3d-stage2": STAGE2,
    "gem3d-slice": SLICE,
    "kl-f8": KL_F8,
    "fdm": FDM,
}
"""Name of the official network -> how its state dicts become one of our models."""


def convert_state_dict(name: str, state_dict: StateDict, **overrides: Any) -> torch.nn.Module:
    """Turns an official state dict into our model, reading the configuration off the tensors.

    Args:
        name: A key of :data:`CONVERTERS`.
        state_dict: Official tensors by name; they are copied.
        overrides: Configuration that no tensor tells, such as ``norm_num_groups`` (default: as published).

    Returns:
        The model in evaluation mode, every one of its tensors taken from `state_dict` and none of those left over.

    Raises:
        ValueError: The name or an override is unknown, or the state dict is not that of the named network.
    """
    return _find_converter(name).build(name, state_dict, overrides)


def convert_checkpoint(
    name: str, checkpoint_path: str | Path, out_dir: str | Path, *, preset: str, **overrides: Any
) -> Path:
    """Turns an official checkpoint file into a pipeline folder: components, index, model card and ``pipeline.py``.

    The folder appears under its name when it is complete, or not at all.

    Args:
        name: A key of :data:`CONVERTERS`.
        checkpoint_path: A ``.safetensors`` file, or a PyTorch checkpoint that holds nothing but the bare state dict.
        out_dir: The folder to write; it must not exist, or be empty.
        preset: A key of :data:`voxdiff.hub.presets.PRESETS` that belongs to `name`.
        overrides: As for :func:`convert_state_dict`.

    Returns:
        `out_dir`.

    Raises:
        FileExistsError: `out_dir` is a file or has something in it.
        FileNotFoundError: There is no such checkpoint.
        OSError: The folder could not be written, for example because the disk is full.
        ValueError: A name is unknown, the checkpoint is unreadable or of another network, or the preset contradicts it.
    """
    converter = _find_converter(name)
    find_preset(preset, name)
    out_dir, checkpoint_path = Path(out_dir), Path(checkpoint_path)
    require_free(out_dir)
    model = converter.build(name, read_checkpoint(checkpoint_path), overrides)
    pipeline = build_pipeline(preset, model)
    digest = file_sha256(checkpoint_path)
    with new_folder(out_dir) as folder:
        pipeline.save_pretrained(folder)
        class_name = type(pipeline).__name__
        write_pipeline_file(folder, class_name)
        card = conversion_card(name, preset, class_name, checkpoint_path.name, digest, overrides)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return out_dir


def _find_converter(name: str) -> Converter:
    if name not in CONVERTERS:
        raise ValueError(f"There is no converter {name!r}; choose one of {', '.join(CONVERTERS)}.")
    return CONVERTERS[name]
