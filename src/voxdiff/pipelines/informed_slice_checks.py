"""What the informed-slice pipeline refuses: parts that do not belong together and arguments that do not fit them."""

import inspect
import itertools
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch

from voxdiff.models.slice_positions import POSITION_RULES
from voxdiff.pipelines.known_slices import check_known_slice_noise
from voxdiff.volumes import VolumeGeometry

_LOST_SHARE = 0.01

NO_SLICE = "No informed slice was given and this pipeline has no slice_unet to generate one; give an informed slice."


def check_parts(vae: Any, unet: Any, slice_unet: Any, position_rule: str) -> None:
    """Raise ValueError unless the components of a pipeline fit each other."""
    latent = vae.config["latent_channels"]
    received = (unet.config["in_channels"], unet.config["out_channels"])
    if received not in ((3 * latent, latent), (2 * latent, latent)):
        raise ValueError(
            f"The autoencoder has {latent} latent channels, so the network takes {3 * latent} channels (Make-A-Volume: "
            f"{2 * latent}) and gives {latent}, but this one takes {received[0]} and gives {received[1]}; use parts that "
            "were trained together."
        )
    if slice_unet is not None and received[0] == 2 * latent:
        raise ValueError("slice_unet was given, but the network has no channels for an informed slice; leave it out.")
    if (
        slice_unet is not None
        and (slice_unet.config["in_channels"], slice_unet.config["out_channels"]) != (latent,) * 2
    ):
        raise ValueError(
            f"slice_unet takes {slice_unet.config['in_channels']} channels and gives {slice_unet.config['out_channels']}, "
            f"but the autoencoder has {latent} latent channels; use parts that were trained together."
        )
    if position_rule not in POSITION_RULES:
        raise ValueError(f"position_rule is {position_rule!r}; use one of {', '.join(map(repr, POSITION_RULES))}.")


def check_conditions(
    takes_informed_slice: bool,
    *,
    informed_slice: Any,
    informed_slice_latents: Any,
    can_generate: bool,
    unit: str | None,
    background: float | None,
    start_position: Any,
    propagation: str,
    known_slice_noise: str,
    overlap: int | None,
) -> None:
    """Raise ValueError if the informed slice is missing or given twice, or something was given that nothing uses."""
    if takes_informed_slice:
        if informed_slice is None and (unit is not None or background is not None):
            raise ValueError("unit and background describe a given informed_slice, and none was given; leave them out.")
        if informed_slice is not None and informed_slice_latents is not None:
            raise ValueError("informed_slice and informed_slice_latents were given; leave one of them out.")
        if informed_slice is None and informed_slice_latents is None and not can_generate:
            raise ValueError(NO_SLICE)
        return
    given = {
        "informed_slice": informed_slice is not None,
        "informed_slice_latents": informed_slice_latents is not None,
        "unit": unit is not None,
        "background": background is not None,
        "start_position": start_position is not None,
        "propagation": propagation != "paper",
        "known_slice_noise": known_slice_noise != "clean",
        "overlap": overlap is not None,
    }
    unused = ", ".join(name for name, is_given in given.items() if is_given)
    if unused:
        raise ValueError(
            f"{unused} was given, but this model has no informed slice and independent windows (Make-A-Volume); leave it out."
        )


def check_latents(name: str, latents: torch.Tensor, shapes: Sequence[tuple[int, ...]], source: str) -> None:
    """Raise ValueError unless latents have one of the shapes; `source` makes those that fit."""
    if not isinstance(latents, torch.Tensor) or tuple(latents.shape) not in shapes:
        received = f"have the shape {tuple(latents.shape)}" if hasattr(latents, "shape") else f"are {latents!r}"
        raise ValueError(
            f"{name} {received}; this call needs a tensor of {' or '.join(map(str, shapes))}: take those of {source}."
        )


def check_sampling(scheduler: Any, num_inference_steps: int, eta: float, known_slice_noise: str) -> None:
    """Raise ValueError if the scheduler has no such noise, or would step beyond its last timestep."""
    check_known_slice_noise(known_slice_noise, scheduler)
    if (
        not isinstance(eta, Real)
        or not 0 <= eta <= 1
        or (eta and "eta" not in inspect.signature(scheduler.step).parameters)
    ):
        raise ValueError(
            f"eta is {eta!r} with {type(scheduler).__name__}; give 0 to 1 with DDIMScheduler, and leave it out with others."
        )
    most, offset = scheduler.config["num_train_timesteps"], scheduler.config.get("steps_offset")
    if scheduler.config.get("timestep_spacing") == "leading" and num_inference_steps == most and offset:
        raise ValueError(
            f"num_inference_steps is {most}, but the scheduler's steps_offset is {offset}, which leads beyond the last "
            f"timestep; take at most {most // 2} steps."
        )


def check_inside(places: np.ndarray, geometry: VolumeGeometry, name: str) -> None:
    """Raise ValueError if labels lie outside of the model's grid, where a volume is blank."""
    to_model = np.linalg.inv(np.array(geometry.model_affine)) @ np.array(geometry.affine)

    def count_outside(indices: np.ndarray) -> int:
        in_model = indices @ to_model[:3, :3].T + to_model[:3, 3]
        return int(((in_model < -0.5) | (in_model > np.array(geometry.model_shape) - 0.5)).any(axis=1).sum())

    box = [np.flatnonzero(places.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    corners = np.array(list(itertools.product(*((along[0], along[-1]) for along in box))))
    if not count_outside(corners):  # the model's grid is convex, so that all between them lies in it too
        return
    lost = 0
    for x in box[0]:  # slab by slab: the indices of a whole volume take many times its memory
        labelled = np.argwhere(places[x])
        lost += count_outside(np.insert(labelled, 0, x, axis=1))
    share = lost / np.count_nonzero(places)
    if share > _LOST_SHARE:
        edges = np.linalg.norm(np.array(geometry.model_affine)[:3, :3], axis=0) * geometry.model_shape
        raise ValueError(
            f"{100 * share:.0f} % of the labelled voxels of {name[0].lower()}{name[1:]} lie outside of the model's field of "
            f"view of {' x '.join(f'{edge:.0f}' for edge in edges)} mm about its centre; crop the mask."
        )
