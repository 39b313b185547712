"""Official checkpoints whose state dicts are packed with objects of classes that nobody here needs or trusts."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from voxdiff.hub.state_dicts import read_checkpoint

_TRUSTED = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor_v2"),
}


class Inert:
    """Stands for an object of any class that holds no tensors (arguments, configurations, callbacks); does nothing.

    Attributes:
        state: What the object's attributes were saved as.
    """

    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        """Take any arguments."""
        return self

    def __setstate__(self, state: Any) -> None:
        """Keep the state, and set no attribute by it."""
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None:
        """Take any item, of a class derived from list."""

    def extend(self, items: Any) -> None:
        """Take any items, of a class derived from list."""


class InertUnpickler(pickle.Unpickler):
    """Unpickler that restores plain containers and tensors, and :class:`Inert` in place of everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the trusted class or function of this name, :class:`Inert` for any other."""
        return super().find_class(module, name) if (module, name) in _TRUSTED else Inert


def read_packed_settings(path: str | Path, entry: str) -> dict[str, Any]:
    """Reads the settings under one entry of an official checkpoint: a mapping, or an object's attributes.

    Raises:
        ValueError: The entry is there, and is neither.
    """
    path = Path(path)
    content = None if path.suffix == ".safetensors" else _load_inert(path)
    found = content.get(entry) if isinstance(content, Mapping) else None
    if found is None:
        return {}
    settings = found.state if isinstance(found, Inert) else found
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"The settings {entry!r} of {str(path)!r} cannot be read; save them as a dict of plain values."
        )
    return {str(key): value for key, value in settings.items()}


def read_packed_checkpoint(path: str | Path, entry: str) -> dict[str, torch.Tensor]:
    """Reads the state dict under one entry of an official checkpoint, or a bare state dict, running none of its code.

    Args:
        path: A PyTorch checkpoint that holds `entry` among other things, or a file with a bare state dict.
        entry: Name of the state dict in the checkpoint, such as ``"ema"`` or ``"state_dict"``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no checkpoint, or holds neither `entry` nor a bare state dict.
    """
    path = Path(path)
    if path.suffix == ".safetensors" or not path.is_file():
        return read_checkpoint(path)
    if _is_torchscript(path):  # which torch.load would hand on to torch.jit.load
        raise ValueError(f"{str(path)!r} is a TorchScript program; give the checkpoint as it was published.")
    content = _load_inert(path)
    state_dict = content.get(entry, content) if isinstance(content, Mapping) else None
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise ValueError(
            f"The checkpoint {str(path)!r} holds no state dict {entry!r}; give a checkpoint as it was published, or a "
            "file with the bare state dict."
        )
    strangers = [key for key, value in state_dict.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise ValueError(
            f"The checkpoint {str(path)!r} holds {strangers[0]!r}, which is no tensor, and no entry {entry!r}; give a "
            "checkpoint as it was published, or a file with the bare state dict."
        )
    return {str(key): value for key, value in state_dict.items()}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _load_inert(path: Path) -> Any:
    def load(file: Any, **options: Any) -> Any:
        return InertUnpickler(file, **options).load()

    reader = SimpleNamespace(__name__="inert pickle", Unpickler=InertUnpickler, load=load)
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)
    # What a broken archive or a broken pickle makes torch.load raise.
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError) as error:
        raise ValueError(
            f"{str(path)!r} is no readable PyTorch checkpoint ({type(error).__name__}); fetch it again."
        ) from error
