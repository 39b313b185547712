"""The layout of official GEM-3D checkpoints, around any tensors."""

import torch

SCHEDULE = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "posterior_variance", "sqrt_recipm1_alphas_cumprod")


def checkpoint_state(unet, vae=None, *, averages=None, copies_vae=True):
    """State dict of a training run: U-Net, noise schedule and, where given, autoencoder (twice) and averages."""
    state = {name: torch.linspace(0, 1, 4) for name in SCHEDULE}
    state |= {f"model.diffusion_model.{key}": tensor for key, tensor in unet.items()}
    if averages is not None:
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5)}
        state |= {f"model_ema.diffusion_model{key.replace('.', '')}": tensor for key, tensor in averages.items()}
    if vae is not None:
        prefixes = ["first_stage_model.", "cond_stage_model."][: 1 + copies_vae]
        state |= {prefix + key: tensor for prefix in prefixes for key, tensor in vae.items()}
    return state
