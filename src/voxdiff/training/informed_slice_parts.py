"""The trained parts that a stage of informed-slice training starts from, and the diffusion they were trained with.

A stage leaves its network in the output folder, with the scheduler in the folder ``scheduler`` in it; in a pipeline's
folder the scheduler lies beside the network.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel

from voxdiff.models.unet_informed_slice import InformedSliceUNetModel
from voxdiff.schedulers import check_scheduler
from voxdiff.training.informed_slice_arguments import InformedSliceArguments

SCHEDULER_FOLDER = "scheduler"
_KINDS = {kind.__name__: kind for kind in (AutoencoderKL, UNet2DConditionModel, UNet2DModel, InformedSliceUNetModel)}
_KINDS_OF_STAGE: dict[str, tuple[type, ...]] = {
    "slice": (UNet2DModel,),
    "volume": (UNet2DModel, InformedSliceUNetModel),
    "generator": (UNet2DConditionModel,),
}
_DIFFUSION = ("prediction_type", "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas")


def make_network(model: InformedSliceArguments, latent_channels: int) -> tuple[Any, Any]:
    """The network that a diffusion stage trains, new or pretrained, and its scheduler.

    Args:
        model: The stage and its options.
        latent_channels: Channels of the autoencoder's latents.

    Raises:
        OSError, ValueError: If the pretrained network is missing or of another kind, or options contradict each other.
    """
    name, kinds, component = model.pretrained_model_name_or_path, _KINDS_OF_STAGE[str(model.stage)], "unet"
    if name is None:
        make = model.make_slice_unet if model.stage == "slice" else model.make_generator_unet
        return make(latent_channels), model.make_scheduler()
    if model.stage == "generator":
        component = "slice_unet"
    unet, folder = load_part("pretrained_model_name_or_path", name, kinds, component=component)
    _require_channels(unet, latent_channels, 1 if model.stage == "generator" else 3 if model.has_informed_slice else 2)
    return (_tuned(unet, model) if model.stage == "volume" else unet), load_scheduler_of(folder)


def load_slice_model(
    model: InformedSliceArguments, latent_channels: int, scheduler: Any
) -> UNet2DConditionModel | None:
    """The generator of informed slices that is saved with the pipeline; None if none was given.

    Args:
        model: The volume stage's options.
        latent_channels: Channels of the autoencoder's latents.
        scheduler: The pipeline's only one.

    Raises:
        OSError, ValueError: If it is missing, or was trained with another diffusion or another rule of positions.
    """
    if model.slice_model is None:
        return None
    unet, folder = load_part("slice_model", model.slice_model, (UNet2DConditionModel,), component="slice_unet")
    _require_channels(unet, latent_channels, 1)
    other = load_scheduler_of(folder)
    for name in _DIFFUSION:
        pair = scheduler.config.get(name), other.config.get(name)
        if pair[0] != pair[1]:
            raise ValueError(
                f"--slice_model {model.slice_model} was trained with {name} {pair[1]}, the network with {pair[0]}; the "
                "pipeline has one scheduler for both: train them alike."
            )
    rule = _position_rule_of(folder)
    if rule not in (None, model.rule):
        raise ValueError(
            f"--slice_model {model.slice_model} was trained with the position rule {rule}; give --position_rule {rule}."
        )
    return unet


def load_part(option: str, folder: str, kinds: tuple[type, ...], *, component: str) -> tuple[Any, Path]:
    """A network from its own folder, or from the folder of a pipeline that holds it.

    Args:
        option: Name of the command-line option that gave the folder, for errors.
        folder: The folder.
        kinds: Classes that will do.
        component: Name of the network in a pipeline.

    Returns:
        The network in float32, and the folder it was in.

    Raises:
        FileNotFoundError: If there is no network.
        ValueError: If it is of another class.
    """
    path = Path(folder)
    if (path / "model_index.json").is_file():
        path = path / component
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"--{option} {folder} holds no trained {component}; give a folder that has one.")
    kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("_class_name")
    allowed = [allowed.__name__ for allowed in kinds]
    if kind not in allowed:
        raise ValueError(f"--{option} {folder} holds a {kind}; give a folder with {' or '.join(allowed)}.")
    return _KINDS[kind].from_pretrained(path, dtype=torch.float32), path


def load_scheduler_of(folder: Path) -> Any:
    """The scheduler that a network was trained with.

    Args:
        folder: Where the network is.

    Raises:
        FileNotFoundError: If there is no scheduler.
        ValueError: If it is one that voxdiff does not support.
    """
    is_in_pipeline = (folder.parent / "model_index.json").is_file()
    path = (folder.parent if is_in_pipeline else folder) / SCHEDULER_FOLDER
    file = path / "scheduler_config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} does not hold the scheduler that the network was trained with; save it there, for the published weights "
            'voxdiff.schedulers.make_scheduler("gem-ddim").'
        )
    kind = json.loads(file.read_text(encoding="utf-8"))["_class_name"]
    scheduler = getattr(diffusers, kind).from_pretrained(path)
    check_scheduler(scheduler)
    return scheduler


def _tuned(unet: Any, model: InformedSliceArguments) -> InformedSliceUNetModel:
    """The network with volumetric layers, of which only these learn unless all shall."""
    has_indicator = model.known_slice_indicator
    if isinstance(unet, UNet2DModel):
        unet = InformedSliceUNetModel.from_slice_model(
            unet, known_slice_indicator=has_indicator, window=model.window_length
        )
    elif unet.config["known_slice_indicator"] != has_indicator:
        raise ValueError(
            f"{model.pretrained_model_name_or_path} was trained with known_slice_indicator "
            f"{not has_indicator}; {'leave out' if has_indicator else 'give'} --known_slice_indicator."
        )
    unet.register_to_config(window=model.window_length)
    if not model.train_spatial:
        unet.freeze_spatial()
    return unet


def _require_channels(unet: Any, latent_channels: int, inputs: int) -> None:
    received, expected = unet.config["in_channels"], inputs * latent_channels
    if (received, unet.config["out_channels"]) != (expected, latent_channels):
        raise ValueError(
            f"The network has {received} input and {unet.config['out_channels']} output channels, this stage needs "
            f"{expected} and {latent_channels} (latents have {latent_channels}; without informed slices, "
            "--informed_slice none, two of them go in, else three)."
        )


def _position_rule_of(folder: Path) -> str | None:
    """What the record of a generator's run, or of its pipeline, says; None where there is no record."""
    if (folder / "run.json").is_file():
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))["model"]["position_rule"] or "inclusive"
    index = folder.parent / "model_index.json"
    return json.loads(index.read_text(encoding="utf-8")).get("position_rule") if index.is_file() else None
