"""Which diffusers schedulers voxdiff supports, and the settings each published method was made with.

Every meaningful key is explicit: a key left at its default is lost when a user swaps the scheduler.
"""

import math
from collections.abc import Mapping
from typing import Any

import diffusers

SUPPORTED_SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler",
}
"""Short name -> diffusers class. The last one serves models trained by flow matching, the others all the rest."""

# Timesteps that each solver's step is consistent with: DDPM and DDIM go down by 1000 // steps and must end at 0 (any other
# end leaves the last ancestral noise in the sample); the multistep and sigma solvers take any spacing, so use both ends.
_SPACING = {"ddpm": "leading", "ddim": "leading"}
_DEFAULT_SPACING = "linspace"

# Keys that mean something else to each solver, and that a solver overwrites for the next one.
_SOLVER_KEYS = {
    "dpm++": {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"},
    "deis": {"algorithm_type": "deis", "solver_type": "logrho"},
    "unipc": {"solver_type": "bh2"},
}


def cosine_betas(num_train_timesteps: int = 1000, max_beta: float = 0.9999) -> list[float]:
    """Cosine noise schedule (Nichol & Dhariwal 2021, eq. 17) with the largest beta of 3D MedDiffusion.

    ``beta_schedule="squaredcos_cap_v2"`` is the same with a largest beta of 0.999.
    """

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = num_train_timesteps
    return [min(1 - alpha_bar((step + 1) / steps) / alpha_bar(step / steps), max_beta) for step in range(steps)]


# Keys of several solvers side by side: diffusers keeps those that the present one does not know for the next one.
_DIFFUSION = {
    "num_train_timesteps": 1000,
    "steps_offset": 0,
    "clip_sample": False,
    "thresholding": False,
    "set_alpha_to_one": True,
    "solver_order": 2,
    "lower_order_final": True,
    "final_sigmas_type": "zero",
}
# WDM and cWDM as published: 1000 ancestral steps with the larger variance; x0 is clipped in image space.
_WDM = {
    **_DIFFUSION,
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "beta_schedule": "linear",
    "prediction_type": "sample",
    "variance_type": "fixed_large",
}

# 3D MedDiffusion as published: 1000 ancestral steps with the posterior variance, x0 clipped to [-1, 1].
_MED = {
    **_DIFFUSION,
    "trained_betas": cosine_betas(),
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    # Where hardly any signal is left, x0 cannot be told from the noise: a solver that does not clip it starts later.
    "lambda_min_clipped": -5.1,
}

# GEM-3D as published: the "linear" schedule of latent diffusion, 200 DDIM steps with eta 1 that end at timestep 1.
_GEM = {
    **_DIFFUSION,
    "beta_start": 8.5e-4,
    "beta_end": 1.2e-2,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}

# For latents, with hardly any signal at the last step. GEM-3D's keeps 7 %: a network can read the mean of a slice off it, and
# is misled by the pure noise that sampling starts from (Lin et al. 2023, arXiv 2305.08891).
_COSINE = {
    **_DIFFUSION,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "variance_type": "fixed_small",
    "lambda_min_clipped": -5.1,
}

# FDM, whose sampler cDPM uses: 1000 ancestral steps with the larger variance, x0 clipped to [-1, 1]; fewer steps are
# spread from 999 to 0.
_FDM = {
    **_DIFFUSION,
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "variance_type": "fixed_large",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "timestep_spacing": "linspace",
}

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "wdm-ddpm": ("ddpm", _WDM),
    "wdm-ddim": ("ddim", _WDM),
    "wdm-dpm++": ("dpm++", _WDM),  # the same diffusion with a second-order solver, for tens of steps
    "med-ddpm": ("ddpm", _MED),
    "med-dpm++": ("dpm++", _MED),
    "gem-ddim": ("ddim", _GEM),
    "gem-dpm++": ("dpm++", _GEM),
    "cosine-dpm++": ("dpm++", _COSINE),
    "fdm": ("ddpm", _FDM),
    "fdm-dpm++": ("dpm++", _FDM),
    "flow-matching": ("flow-euler", {"num_train_timesteps": 1000, "shift": 1.0}),
}
"""Name of a published setting -> (short name of the scheduler, its configuration)."""


def make_scheduler(preset: str, **changes: Any):
    """Build the scheduler of a named preset.

    Args:
        preset: A key of :data:`PRESETS`.
        changes: Configuration keys to replace, such as ``prediction_type="epsilon"``.

    Raises:
        ValueError: If the preset is unknown.
    """
    if preset not in PRESETS:
        raise ValueError(f"Scheduler preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}.")
    name, config = PRESETS[preset]
    return _build(name, {**config, **changes})


def check_scheduler(scheduler: object) -> None:
    """Raise ValueError unless the scheduler is one of the tested ones."""
    received = type(scheduler).__name__
    if received not in SUPPORTED_SCHEDULERS.values():
        raise ValueError(
            f"The scheduler is {received}, which voxdiff does not support; use one of {_table()}, for example "
            "`pipe.scheduler = voxdiff.schedulers.swap_scheduler(pipe.scheduler, 'dpm++')`."
        )


def swap_scheduler(scheduler, name: str):
    """Return another solver for the same diffusion: same noise schedule and prediction type.

    Args:
        scheduler: The scheduler a model was trained or saved with.
        name: Short name, a key of :data:`SUPPORTED_SCHEDULERS`.

    Raises:
        ValueError: If the name is unknown, or one of the two is a flow-matching scheduler and the other is not.
    """
    if name not in SUPPORTED_SCHEDULERS:
        raise ValueError(f"Scheduler {name!r} is not supported; choose one of {_table()}.")
    target = SUPPORTED_SCHEDULERS[name]
    if ("FlowMatch" in target) != ("FlowMatch" in type(scheduler).__name__):
        raise ValueError(
            f"A model trained with {type(scheduler).__name__} cannot be sampled with {target}: flow matching and "
            "diffusion define time differently; keep a scheduler of its own kind."
        )
    return _build(name, {key: value for key, value in scheduler.config.items() if key != "timestep_spacing"})


def _build(name: str, config: Mapping[str, Any]):
    spacing = {} if name == "flow-euler" else {"timestep_spacing": _SPACING.get(name, _DEFAULT_SPACING)}
    config = {**spacing, **config, **_SOLVER_KEYS.get(name, {})}
    return getattr(diffusers, SUPPORTED_SCHEDULERS[name]).from_config(config)


def _table() -> str:
    return ", ".join(f"{name} ({cls})" for name, cls in SUPPORTED_SCHEDULERS.items())
