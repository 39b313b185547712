"""What every converter shares: reading an official checkpoint and loading its tensors strictly into our model."""

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

StateDict = Mapping[str, torch.Tensor]
Config = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Converter:
    """How the state dicts of one official network become one of our models.

    Args:
        model: Class of our model.
        read_config: Reads the model's configuration off the official tensors; raises ValueError where they contradict
            each other or belong to another network.
        overrides: Configuration that no tensor tells and the caller may give; the published values are the model's own
            defaults.
        keys: The key table, one row a module or tensor: official name, our name. Our names may hold numbers as
            ``{level}``; official names may use these and what `numbering` makes of them.
        numbering: From the configuration and the numbers of our name to the numbers of the official name.
        prepare: Splits and reshapes official tensors until each is one of ours, and leaves out what training alone needs.
    """

    model: Callable[..., torch.nn.Module]
    read_config: Callable[[StateDict], Config]
    overrides: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    numbering: Callable[..., dict[str, int]] = lambda config, **numbers: {}
    prepare: Callable[[StateDict], StateDict] = dict

    def build(self, name: str, state_dict: StateDict, overrides: Config) -> torch.nn.Module:
        """Our model, in evaluation mode, with all of the tensors and no others.

        Raises:
            ValueError: An override is unknown, or a tensor is missing, unexpected or of another shape.
        """
        unknown = sorted(set(overrides) - set(self.overrides))
        if unknown:
            raise ValueError(
                f"The {name!r} converter was given {unknown[0]!r}, which it does not take or reads off the tensors; "
                f"give {' or '.join(self.overrides) or 'no overrides'}."
            )
        state_dict = self.prepare(state_dict)
        config = {**self.read_config(state_dict), **overrides}
        model = self.model(**config)
        official = self.official_keys(list(model.state_dict()), config)
        expected = {official[key]: tensor.shape for key, tensor in model.state_dict().items()}
        _check_tensors(name, state_dict, expected)
        model.load_state_dict({key: state_dict[official[key]] for key in official}, strict=True)
        return model.eval()

    def official_keys(self, keys: list[str], config: Config) -> dict[str, str]:
        """The official name of every tensor of our model.

        Raises:
            RuntimeError: The key table does not name one of our tensors exactly once.
        """
        rows = [(_number_pattern(ours), official) for official, ours in self.keys]
        names = {}
        for key in keys:
            found = [(match, official) for pattern, official in rows if (match := pattern.fullmatch(key))]
            if len(found) != 1:
                raise RuntimeError(f"The key table of {self.model} has {len(found)} rows for {key}; it needs one.")
            match, official = found[0]
            numbers = {name: int(value) for name, value in match.groupdict().items() if name != "tensor_"}
            names[key] = official.format(**{**numbers, **self.numbering(config, **numbers)}) + (match["tensor_"] or "")
        if len(set(names.values())) != len(names):
            raise RuntimeError(f"The key table of {self.model} gives two of our tensors one official name.")
        return names


def require_shape(state_dict: StateDict, key: str, rank: int) -> torch.Size:
    """Shape of a tensor that the configuration is read from.

    Raises:
        ValueError: The state dict has no such tensor, or it has another rank.
    """
    if key not in state_dict:
        raise ValueError(
            f"The state dict has no tensor {key!r} among its {len(state_dict)}, the first of which is "
            f"{next(iter(state_dict), None)!r}; give the state dict of the official network as it was published."
        )
    shape = state_dict[key].shape
    if len(shape) != rank:
        raise ValueError(
            f"The tensor {key!r} has the shape {tuple(shape)} where the official network has {rank} dimensions; give "
            "the state dict as it was published."
        )
    return shape


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads the bare state dict in a ``.safetensors`` file or a PyTorch checkpoint, running none of its code.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no checkpoint, holds other objects than tensors, or wraps the state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no checkpoint file {str(path)!r}; give the path of a .pt or .safetensors file."
        )
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    if not isinstance(content, Mapping) or not content:
        what = "is empty" if isinstance(content, Mapping) else f"holds one object of type {type(content).__name__}"
        raise ValueError(f"The checkpoint {str(path)!r} {what}; give a file with the bare state dict, name to tensor.")
    strangers = [key for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        wrapped = next((key for key in strangers if isinstance(content[key], Mapping)), None)
        hint = "" if wrapped is None else f" (perhaps the entry {wrapped!r})"
        raise ValueError(
            f"The checkpoint {str(path)!r} is no bare state dict: its entry {strangers[0]!r} is of type "
            f"{type(content[strangers[0]]).__name__}; save its state dict{hint} to a file of its own and convert that."
        )
    return {str(key): value for key, value in content.items()}


def _load_safetensors(path: Path) -> Any:
    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} is no readable safetensors file ({_reason(error)}); fetch it again."
        ) from error


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        stranger = re.search(r"GLOBAL ([A-Za-z_]\w*\.[\w.]+)", str(error))
        if stranger is None:
            raise _no_checkpoint(path, error) from error
        raise ValueError(
            f"The checkpoint {str(path)!r} holds Python objects ({stranger[1]}) besides tensors, and loading those can "
            "run code; save its bare state dict to a file of its own, on a machine that trusts it, and convert that."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise _no_checkpoint(path, error) from error  # what a broken archive or a broken pickle makes torch.load raise


def _no_checkpoint(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{str(path)!r} is no readable PyTorch checkpoint ({_reason(error)}); give a .pt file written by torch.save or "
        "a .safetensors file."
    )


def _check_tensors(name: str, state_dict: StateDict, expected: Mapping[str, torch.Size]) -> None:
    missing = [key for key in expected if key not in state_dict]
    unexpected = [key for key in state_dict if key not in expected]
    misshaped = [key for key in expected if key in state_dict and state_dict[key].shape != expected[key]]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(expected)} tensors missing, the first is {missing[0]}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected, the first is {unexpected[0]}")
    if misshaped:
        first = misshaped[0]
        problems.append(
            f"{len(misshaped)} misshaped, the first is {first} with {tuple(state_dict[first].shape)} instead of "
            f"{tuple(expected[first])}"
        )
    if problems:
        raise ValueError(
            f"The state dict does not fit the {name!r} network that its tensors describe: {'; '.join(problems)}: give "
            "the state dict as it was published."
        )


def _number_pattern(template: str) -> re.Pattern[str]:
    """``"down_blocks.{level}"`` as a pattern for that name, alone or with a tensor's name (``.weight``) behind it."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(template)) + r"(?P<tensor_>\.[^.]+)?")


def _reason(error: Exception) -> str:
    """The first line of an error where it means something to a reader, else its type."""
    lines = str(error).strip().splitlines() if isinstance(error, OSError | RuntimeError | SafetensorError) else []
    return (lines or [type(error).__name__])[0].rstrip(".")[:160]
