"""The one place where a sampler's guess of the clean sample (x0) is constrained.

A wavelet clip, known voxels, known slices or data consistency all act on x0, between the network and
``scheduler.step``: network output -> x0 -> constraint -> network output. The schedulers' own steps stay untouched.
"""

from collections.abc import Callable

import torch

Constraint = Callable[[torch.Tensor], torch.Tensor]


def constrain_prediction(
    scheduler,
    model_output: torch.Tensor,
    timestep: torch.Tensor | float,
    sample: torch.Tensor,
    constraint: Constraint,
) -> torch.Tensor:
    """Apply a constraint on x0 to a network output, whatever the scheduler's parametrisation.

    Call it right before ``scheduler.step(model_output, timestep, sample)`` with the same arguments.

    Args:
        scheduler: One of the supported schedulers (:mod:`voxdiff.schedulers.presets`), timesteps set.
        model_output: What the network predicted, of the scheduler's ``prediction_type``.
        timestep: The current timestep.
        sample: The scheduler's current sample (not the scaled network input).
        constraint: Maps x0 to the constrained x0, both of ``sample``'s shape.

    Returns:
        The network output for which the scheduler computes the constrained x0.
    """
    if getattr(scheduler.config, "prediction_type", None) == "sample":
        return constraint(model_output)
    return output_from_x0(
        scheduler, constraint(predict_x0(scheduler, model_output, timestep, sample)), timestep, sample
    )


def predict_x0(scheduler, model_output: torch.Tensor, timestep, sample: torch.Tensor) -> torch.Tensor:
    """Clean sample that a network output stands for at the scheduler's current step."""
    alpha, sigma, kind = _noise_level(scheduler, timestep)
    if kind == "sample":
        return model_output
    if kind == "flow_prediction":
        return sample - sigma * model_output
    sample = _variance_preserving(scheduler, sample, alpha)
    if kind == "epsilon":
        return (sample - sigma * model_output) / alpha
    return alpha * sample - sigma * model_output


def output_from_x0(scheduler, x0: torch.Tensor, timestep, sample: torch.Tensor) -> torch.Tensor:
    """Network output that stands for a clean sample; the inverse of :func:`predict_x0`."""
    alpha, sigma, kind = _noise_level(scheduler, timestep)
    if kind == "sample":
        return x0
    if kind == "flow_prediction":
        return (sample - x0) / sigma
    sample = _variance_preserving(scheduler, sample, alpha)
    if kind == "epsilon":
        return (sample - alpha * x0) / sigma
    return (alpha * sample - x0) / sigma


def _noise_level(scheduler, timestep) -> tuple[float, float, str]:
    """Alpha and sigma of the variance-preserving form of the current step (flow: of its own form), prediction type."""
    if hasattr(scheduler, "sigmas"):
        index = scheduler.step_index
        sigma = float(scheduler.sigmas[scheduler.index_for_timestep(timestep) if index is None else index])
        if "FlowMatch" in type(scheduler).__name__ or getattr(scheduler.config, "use_flow_sigmas", False):
            return 1.0 - sigma, sigma, "flow_prediction"
        alpha = 1.0 / (1.0 + sigma**2) ** 0.5
        return alpha, sigma * alpha, scheduler.config.prediction_type
    alpha_cumprod = float(scheduler.alphas_cumprod[int(timestep)])
    return alpha_cumprod**0.5, (1.0 - alpha_cumprod) ** 0.5, scheduler.config.prediction_type


def _variance_preserving(scheduler, sample: torch.Tensor, alpha: float) -> torch.Tensor:
    """Euler and Heun carry x0 + sigma * noise (variance exploding), the others alpha * x0 + sigma * noise."""
    return sample * alpha if type(scheduler).__name__ in ("EulerDiscreteScheduler", "HeunDiscreteScheduler") else sample
