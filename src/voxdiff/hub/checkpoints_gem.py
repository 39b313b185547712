"""Official GEM-3D checkpoints: one network's tensors out of all that a training run saved (Lightning, latent diffusion)."""

from typing import Literal

import torch

from voxdiff.hub.state_dicts import StateDict

Weights = Literal["raw", "ema"]

_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_VAE_COPY = "cond_stage_model."
_AVERAGES = "model_ema."
_PARTS = (_UNET, _VAE, _VAE_COPY, _AVERAGES)
_AVERAGING = {"model_ema.decay", "model_ema.num_updates"}
_TRAINING_LOSS = "loss."  # discriminator and perceptual network of a KL-f8 checkpoint
_SCHEDULE = {
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
}


def select_unet(state_dict: StateDict, weights: Weights = "raw") -> StateDict:
    """The U-Net's tensors by their own names.

    Args:
        state_dict: That of a whole checkpoint, or the U-Net's alone, which is returned as it is.
        weights: ``"raw"``, as the official scripts sample, or ``"ema"``, the averages kept beside them.

    Raises:
        ValueError: There is no U-Net, its averages are asked for and are missing or of another network, or the checkpoint
            has a tensor of no known part.
    """
    if weights not in ("raw", "ema"):
        raise ValueError(f"weights is {weights!r}; choose 'raw' or 'ema'.")
    whole = _is_whole(state_dict)
    if weights == "ema" and not (whole and any(key.startswith(_AVERAGES) for key in state_dict)):
        raise ValueError("The state dict has no averaged weights (model_ema.*); leave out weights='ema'.")
    if not whole:
        return state_dict
    unet = _select(state_dict, _UNET)
    return unet if weights == "raw" else _averages_of(state_dict, list(unet))


def select_vae(state_dict: StateDict) -> StateDict:
    """The autoencoder's tensors by their own names, without its training loss.

    Args:
        state_dict: That of a whole checkpoint, or of a KL-f8 checkpoint.

    Raises:
        ValueError: There is no autoencoder, masks have another one than images, or the checkpoint has a tensor of no known
            part.
    """
    if not _is_whole(state_dict):
        return {key: tensor for key, tensor in state_dict.items() if not key.startswith(_TRAINING_LOSS)}
    vae = _select(state_dict, _VAE)
    copy = {key.removeprefix(_VAE_COPY): tensor for key, tensor in state_dict.items() if key.startswith(_VAE_COPY)}
    if copy and not (copy.keys() == vae.keys() and all(torch.equal(copy[key], vae[key]) for key in vae)):
        raise ValueError(
            f"The tensors {_VAE_COPY}* are no copy of {_VAE}*, so that masks have an autoencoder of their own; only models "
            "with one autoencoder for both, as published, are supported."
        )
    return vae


def holds_vae(state_dict: StateDict) -> bool:
    """Whether a checkpoint has an autoencoder beside its U-Net."""
    return any(key.startswith(_VAE) for key in state_dict)


def _is_whole(state_dict: StateDict) -> bool:
    return any(key.startswith(_PARTS) for key in state_dict)


def _select(state_dict: StateDict, prefix: str) -> StateDict:
    stranger = next((key for key in state_dict if not key.startswith(_PARTS) and key not in _SCHEDULE), None)
    if stranger is not None:
        raise ValueError(
            f"The checkpoint has the tensor {stranger}, which belongs to no part of a GEM-3D checkpoint ("
            f"{', '.join(f'{part}*' for part in _PARTS)}, noise schedule); give the checkpoint as it was published."
        )
    part = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    if not part:
        raise ValueError(f"The checkpoint has no tensors {prefix}*; give the checkpoint as it was published.")
    return part


def _averages_of(state_dict: StateDict, keys: list[str]) -> StateDict:
    """The averages are named as the tensors of the model, without dots."""
    names = {key: _AVERAGES + f"{_UNET.removeprefix('model.')}{key}".replace(".", "") for key in keys}
    missing = [name for name in names.values() if name not in state_dict]
    known = {*names.values(), *_AVERAGING}
    unexpected = [key for key in state_dict if key.startswith(_AVERAGES) and key not in known]
    if missing or unexpected:
        what = f"{missing[0]} is missing" if missing else f"{unexpected[0]} averages no tensor of the network"
        raise ValueError(f"The averaged weights are not those of this U-Net ({what}); leave out weights='ema'.")
    return {key: state_dict[name] for key, name in names.items()}
