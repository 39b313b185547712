"""Checkpoints that are either whole or absent."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

STATE_FILE = "training_state.json"


def save_checkpoint(accelerator: Accelerator, output_dir: Path, state: dict[str, Any], *, limit: int) -> Path:
    """Write ``checkpoint-<step>`` under a temporary name, rename it, then remove the oldest beyond ``limit``.

    Every process must call it.

    Args:
        accelerator: Holds what is saved, through its save hooks.
        output_dir: Folder of the run.
        state: Plain values beside it; ``state["step"]`` names the checkpoint.
        limit: Checkpoints kept.
    """
    final = output_dir / f"checkpoint-{state['step']}"
    temporary = output_dir / f".{final.name}.tmp"
    if accelerator.is_main_process and temporary.exists():
        shutil.rmtree(temporary)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / STATE_FILE).write_text(json.dumps(state, indent=2), encoding="utf-8")
        make_readable(temporary)
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
        for old in list_checkpoints(output_dir)[:-limit]:
            shutil.rmtree(old)
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
    """
    if request is None:
        return None
    if request == "latest":
        return next(iter(reversed(list_checkpoints(output_dir))), None)
    if not (Path(request) / STATE_FILE).is_file():
        raise FileNotFoundError(
            f"{request} is not a complete checkpoint (it has no {STATE_FILE}); give the path of a checkpoint-<step> folder "
            "or 'latest'."
        )
    return Path(request)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The plain values that :func:`save_checkpoint` wrote beside the weights."""
    return json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))


def replace_folder_contents(source: Path, target: Path) -> None:
    """Move every entry of ``source`` over its namesake in ``target``, ``model_index.json`` last."""
    make_readable(source)
    for entry in sorted(source.iterdir(), key=lambda path: path.name == "model_index.json"):
        destination = target / entry.name
        if destination.is_dir():
            shutil.rmtree(destination)
        os.replace(entry, destination)
    source.rmdir()


def make_readable(folder: Path) -> None:
    """Give files the umask's mode: safetensors writes them readable by their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~umask)
