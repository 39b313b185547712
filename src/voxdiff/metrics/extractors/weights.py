"""Weight files of extractors: converted once from what the publisher gives, then read without running any code."""

import hashlib
import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

StateDict = Mapping[str, torch.Tensor]

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_HEADS = ("conv_seg.", "fc.", "classifier.")  # of MedicalNet, of residual networks, of VGG
_COUNTER = ".num_batches_tracked"  # of a batch norm; nothing reads it in evaluation mode
_SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class Published:
    """Where the weights of a network are published.

    Attributes:
        name: of the network, as `voxdiff convert-extractor` knows it.
        file: the publisher's file.
        address: where to get it.
    """

    name: str
    file: str
    address: str


def read_weights(weights: str | Path | None, published: Published) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors in a safetensors file, and the file's SHA-256.

    Raises:
        FileNotFoundError: no file is given, or it does not exist.
        ValueError: the file is a pickle, or no readable safetensors file.
    """
    convert = f"`voxdiff convert-extractor {published.name} {published.file} {published.name}.safetensors`"
    if weights is None:
        raise FileNotFoundError(
            f"{published.name} was given no weights: download {published.file} from {published.address}, convert it "
            f"with {convert} and pass `--extractor {published.name}=/path/{published.name}.safetensors`."
        )
    path = Path(weights)
    if path.suffix in PICKLE_SUFFIXES:
        raise ValueError(
            f"{path} is a pickled checkpoint, which can run code when loaded; convert it once with {convert} and give "
            "the result."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no weight file {str(path)!r} for {published.name}; download {published.file} from "
            f"{published.address} and convert it with {convert}."
        )
    try:
        return load_file(path), file_sha256(path)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is no readable safetensors file ({error}); convert it again.") from error


def load_strictly(network: nn.Module, state: StateDict, name: str) -> None:
    """Load a state dict whose tensors are exactly those of the network.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape.
    """
    own = network.state_dict()
    counters = {key: tensor for key, tensor in own.items() if key.endswith(_COUNTER)}
    missing = sorted(set(own) - set(state) - set(counters))
    unexpected = sorted(set(state) - set(own))
    misshaped = sorted(key for key in set(own) & set(state) if own[key].shape != state[key].shape)
    problems = [f"{len(keys)} tensors {kind}, the first is {keys[0]}"
                for kind, keys in (("missing", missing), ("unexpected", unexpected)) if keys]  # fmt: skip
    if misshaped:
        first = misshaped[0]
        problems.append(
            f"{len(misshaped)} tensors misshaped, the first is {first} with {tuple(state[first].shape)} instead of "
            f"{tuple(own[first].shape)}"
        )
    if problems:
        raise ValueError(f"The weights do not fit {name}: {'; '.join(problems)}; give the file published for {name}.")
    network.load_state_dict({**counters, **state})


def convert_weights(source: str | Path, target: str | Path, build: Callable[[StateDict], object]) -> list[str]:
    """Write the tensors of a publisher's checkpoint as safetensors, once they are known to fit.

    A `state_dict` entry is unwrapped; the prefixes `module.` and `backbone.` go, the numbers of a sequential backbone
    become names, heads and batch counters are left out. The checkpoint is read with `weights_only`: no code in it runs.

    Args:
        source: `.pth`, `.pt`, `.bin` or `.safetensors`.
        target: `.safetensors` file to write.
        build: raises if the converted tensors are not those of the network.

    Returns:
        The publisher's names of the tensors left out.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the source holds other things than tensors, or those of another network.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"The converted weights were to be written to {str(target)!r}; give a name in .safetensors.")
    if not source.is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(source)!r}; give the path of the publisher's file.")
    published = _read_checkpoint(source)
    names = {key: _our_name(key) for key in published}
    state = {name: published[key].contiguous().clone() for key, name in names.items() if name is not None}
    build(state)
    temporary = target.with_name(target.name + ".tmp")
    save_file(state, temporary)
    os.replace(temporary, target)
    return [key for key, name in names.items() if name is None]


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _our_name(key: str) -> str | None:
    """The name of a published tensor in our networks; None for a head or a batch counter."""
    name = key.removeprefix("module.")
    backbone = re.fullmatch(r"backbone\.(\d+)\.(.+)", name)
    name = f"{_SEQUENTIAL.get(backbone[1], backbone[1])}.{backbone[2]}" if backbone else name.removeprefix("backbone.")
    return None if name.startswith(_HEADS) or name.endswith(_COUNTER) else name


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    content: Any
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise ValueError(
            f"{str(path)!r} is no checkpoint of tensors alone ({type(error).__name__}); fetch the publisher's file again."
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(
            f"{str(path)!r} holds other things than a state dict, name to tensor; give the published file."
        )
    return dict(content)
