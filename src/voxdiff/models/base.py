"""Base class of all networks: safetensors only, strict loading."""

import json
from pathlib import Path
from typing import Any

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

_ALIGNMENT = 64  # bytes, of memory that torch asks for itself
PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


class VolumeModel(ModelMixin, ConfigMixin):
    """A diffusers model that loads strictly: every tensor present, of the right shape, from safetensors."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs: Any):
        """Load a model folder or Hub repository.

        Takes diffusers' arguments (``subfolder``, ``dtype``, ``variant``, ``revision``, ...), except that the network is
        always built empty and filled from the file (``low_cpu_mem_usage=True``): what stays empty is noticed.

        Raises:
            ValueError: If the weights are a pickle, or a tensor is missing, unexpected or of another shape.
        """
        refuse_pickle(pretrained_model_name_or_path, kwargs.get("subfolder"))
        kwargs["use_safetensors"] = safetensors_only(kwargs.get("use_safetensors"))
        kwargs["low_cpu_mem_usage"] = True
        wants_info = kwargs.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        except (RuntimeError, ValueError) as error:
            if "shape" not in str(error) and "size mismatch" not in str(error):
                raise
            told = " ".join(str(error).split()).partition(" If you want")[0].rstrip(".")[:300]
            raise ValueError(
                f"The weights in {pretrained_model_name_or_path} do not have the shapes that {cls.__name__}'s config.json "
                f"asks for ({told}); use weights and config of the same model."
            ) from error
        if kwargs.get("device_map") is None:  # the index of a sharded checkpoint may promise what no shard holds
            empty = {name for name, tensor in model.state_dict().items() if tensor.is_meta}
            info["missing_keys"] = sorted(empty | set(info["missing_keys"]))
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info[problem]:
                raise ValueError(
                    f"The weights in {pretrained_model_name_or_path} do not fit {cls.__name__}: {len(info[problem])} "
                    f"{problem.replace('_', ' ')}, the first is {sorted(map(str, info[problem]))[0]}; use weights and "
                    "config of the same model."
                )
        align_weights(model)
        return (model, info) if wants_info else model


def align_weights(module: nn.Module) -> None:
    """Copy weights that a file's layout put at odd addresses, by which some processors round: then only values count."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()


def safetensors_only(use_safetensors: bool | None) -> bool:
    """Return True; diffusers passes None by default, which would fall back on a pickle, and False asks for one."""
    if use_safetensors is False:
        raise ValueError(
            "use_safetensors is False, but voxdiff loads safetensors only: leave it out, or turn a pickled checkpoint "
            "into a pipeline folder with `voxdiff convert`."
        )
    return True


def refuse_pickle(location: str | Path, subfolder: str | None = None) -> None:
    """Raise ValueError if a local path is a pickled checkpoint or a folder whose only weights are pickled."""
    path = Path(location)
    if path.is_file() and path.suffix in PICKLE_SUFFIXES:
        raise ValueError(_refusal(path))
    folder = path / (subfolder or "")
    if not folder.is_dir():
        return
    pickles = sorted(file for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if pickles and not any(folder.glob("*.safetensors")) and not (folder / "model_index.json").exists():
        raise ValueError(_refusal(pickles[0]))


def refuse_pickled_components(folder: str | Path) -> None:
    """Apply :func:`refuse_pickle` to every component that a pipeline folder's model_index.json names."""
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        return
    for name, value in json.loads(index.read_text(encoding="utf-8")).items():
        if isinstance(value, list) and (Path(folder) / name).is_dir():
            refuse_pickle(folder, name)


def _refusal(path: Path) -> str:
    return (
        f"{path} is a pickled checkpoint, which can run code when loaded; voxdiff loads safetensors only: turn it into a "
        "pipeline folder with `voxdiff convert`."
    )
