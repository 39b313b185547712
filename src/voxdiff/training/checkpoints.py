"""Checkpoints, and the pipeline or model at the end, that are either whole or absent."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import nn

from voxdiff.volumes import atomic_path

STATE_FILE = "training_state.json"


def store_as_folders(accelerator: Accelerator, models: dict[str, Any]) -> None:
    """Let checkpoints hold each model as a ``save_pretrained`` folder of its name, and nothing else of the models."""

    def save(_models: list[nn.Module], weights: list, folder: str) -> None:
        if accelerator.is_main_process:
            for name, model in models.items():
                model.save_pretrained(Path(folder) / name)
        weights.clear()

    def load(remaining: list[nn.Module], folder: str) -> None:
        for name, model in models.items():
            model.load_state_dict(type(model).from_pretrained(Path(folder) / name).state_dict())
        remaining.clear()

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save_checkpoint(accelerator: Accelerator, output_dir: Path, state: dict[str, Any], *, limit: int) -> Path:
    """Write ``checkpoint-<step>`` under a temporary name, rename it, then remove the oldest beyond ``limit``.

    Every process must call it.

    Args:
        accelerator: Holds what is saved, through its save hooks.
        output_dir: Folder of the run.
        state: Plain values beside it; ``state["step"]`` names the checkpoint.
        limit: Checkpoints kept.

    Raises:
        OSError: If it could not be written, for example because the disk is full.
    """
    final = output_dir / f"checkpoint-{state['step']}"
    temporary = output_dir / f".{final.name}.tmp"
    if accelerator.is_main_process:
        for leftover in output_dir.glob(".checkpoint-*.tmp"):
            shutil.rmtree(leftover)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(temporary))
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors report a full disk as their own
        shutil.rmtree(temporary, ignore_errors=True)
        reason = str(error).split("\n")[0]
        raise OSError(
            f"{final} could not be written ({reason}); the checkpoints before it are as they were."
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / STATE_FILE).write_text(json.dumps(state, indent=2), encoding="utf-8")
        make_readable(temporary)
        os.replace(temporary, final)
        for old in list_checkpoints(output_dir)[:-limit]:
            hidden = old.with_name(f".{old.name}.tmp")  # half a checkpoint must not look like one
            os.replace(old, hidden)
            shutil.rmtree(hidden)
    accelerator.wait_for_everyone()
    return final


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if (path / STATE_FILE).is_file()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def find_checkpoint(output_dir: Path, request: str | None) -> Path | None:
    """Resolve ``--resume_from_checkpoint``: None, ``"latest"`` (None if there is none yet), or a path.

    Raises:
        FileNotFoundError: If the path is not a complete checkpoint.
        ValueError: If the run would write over later checkpoints of another one.
    """
    latest = next(iter(reversed(list_checkpoints(output_dir))), None)
    chosen = latest if request == "latest" else Path(request) if request else None
    if chosen is not None and not (chosen / STATE_FILE).is_file():
        raise FileNotFoundError(
            f"{chosen} is not a complete checkpoint (it has no {STATE_FILE}); give the path of a checkpoint-<step> "
            "folder, or 'latest'."
        )
    if latest is not None and (chosen is None or chosen.resolve() != latest.resolve()):
        raise ValueError(
            f"{output_dir} holds {latest.name} of an earlier run; continue it with --resume_from_checkpoint latest, or "
            "choose another --output_dir."
        )
    return chosen


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The plain values that :func:`save_checkpoint` wrote beside the weights."""
    return json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write a pipeline into a folder that may hold other things, part by part, ``model_index.json`` last.

    With its ``pipeline.py`` plain diffusers loads it too (``custom_pipeline="pipeline", trust_remote_code=True``).
    """
    with tempfile.TemporaryDirectory(prefix=".pipeline-", dir=folder) as temporary:
        pipeline.save_pretrained(temporary)
        text = f"import voxdiff  # noqa: F401\nfrom voxdiff import {type(pipeline).__name__}  # noqa: F401\n"
        Path(temporary, "pipeline.py").write_text(text, encoding="utf-8")
        _move_parts(Path(temporary), folder, last="model_index.json")


def save_model(model: Any, folder: Path) -> None:
    """Write a model into a folder that may hold other things, file by file, ``config.json`` last."""
    with tempfile.TemporaryDirectory(prefix=".model-", dir=folder) as temporary:
        model.save_pretrained(temporary)
        _move_parts(Path(temporary), folder, last="config.json")


def _move_parts(source: Path, folder: Path, *, last: str) -> None:
    make_readable(source)
    for part in sorted(source.iterdir(), key=lambda path: path.name == last):
        with atomic_path(folder / part.name) as destination:
            os.replace(part, destination)


def make_readable(folder: Path) -> None:
    """Give files the umask's mode: safetensors writes them readable by their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~umask)
