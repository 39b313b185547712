"""What `bench_patch_volume_ablations.py` measures: of an autoencoder per volume, of a diffusion model per set."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from voxdiff.metrics.extractors.registry import load_extractor
from voxdiff.metrics.factors import brain_factors
from voxdiff.metrics.features import extract_features
from voxdiff.metrics.structural import ssim
from voxdiff.models.autoencoder_patch_volume import AutoencoderPatchVolume
from voxdiff.pipelines.pipeline_patch_volume_ldm import PatchVolumeLDMPipeline
from voxdiff.training.batches import SampleNoise
from voxdiff.training.objective_latent import LatentDiffusionObjective

EXTRACTOR = "cohort-3d"
FACTORS = ("brain_volume_ml", "ventricle_volume_ml", "sharpness")
_FIRST_SEED = 10_000
_AT_ONCE = 10
_DRAWS = 4


@torch.inference_mode()
def reconstruct(vae: AutoencoderPatchVolume, volume: torch.Tensor, decoder: str = "decode") -> torch.Tensor:
    """A volume ``(1, x, y, z)`` in [0, 1], encoded, quantised and decoded, clamped to that range."""
    decoded = getattr(vae, decoder)(vae.encode(2 * volume[None] - 1).latents).sample[0]
    return (decoded.clamp(-1, 1) + 1) / 2


def reconstruction_cases(
    vae: AutoencoderPatchVolume, volumes: Sequence[torch.Tensor], *, decoder: str, patch: int
) -> list[dict[str, Any]]:
    """Measurements of each reconstruction.

    Args:
        vae: The autoencoder.
        volumes: ``(1, x, y, z)`` in [0, 1].
        decoder: ``"decode"``, which is joint, or ``"decode_patches"``.
        patch: Side of the patches, whose borders are looked at.

    Returns:
        A mapping a volume: ``case``; ``psnr`` in dB and ``ssim``, data range 1; ``gradient``, the gradient energy over
        the original's; :func:`border_ratio` of the reconstruction, ``border``, of the original, ``original_border``, and
        of their difference, ``error_border``; ``seam``, how far the first is from the second: the absolute logarithm of
        their ratio.
    """
    cases = []
    for place, volume in enumerate(volumes):
        found = reconstruct(vae, volume, decoder)
        border, original_border = (border_ratio(image[0], patch) for image in (found, volume))
        mse = (found - volume).double().square().mean().item()
        cases.append(
            {
                "case": f"{place:04d}",
                "psnr": -10 * math.log10(mse),
                "ssim": ssim(found[None], volume[None], data_range=1.0).item(),
                "gradient": gradient_energy(found[0]) / gradient_energy(volume[0]),
                "border": border,
                "original_border": original_border,
                "error_border": border_ratio(found[0] - volume[0], patch),
                "seam": abs(math.log(border / original_border)),
            }
        )
    return cases


def border_ratio(volume: torch.Tensor, patch: int) -> float:
    """Mean squared difference of neighbours on two sides of a patch border over that of all other neighbours."""
    across, elsewhere = [], []
    for axis, side in enumerate(volume.shape):
        squares = volume.double().diff(dim=axis).square().movedim(axis, 0).flatten(1).mean(1)
        at_border = (torch.arange(1, side) % patch) == 0
        across.append(squares[at_border])
        elsewhere.append(squares[~at_border])
    return (torch.cat(across).mean() / torch.cat(elsewhere).mean()).item()


def gradient_energy(volume: torch.Tensor) -> float:
    """Sum over the axes of the mean squared difference of neighbours."""
    return sum(volume.double().diff(dim=axis).square().mean().item() for axis in range(volume.ndim))


def describe_set(volumes: Sequence[torch.Tensor], spacing: Sequence[float], *, with_factors: bool) -> dict[str, Any]:
    """Features of volumes ``(1, x, y, z)`` in [0, 1], and the factors of each if they are whole brains."""
    described: dict[str, Any] = {"features": extract_features(load_extractor(EXTRACTOR), volumes).values.tolist()}
    if with_factors:
        found = [asdict(brain_factors(volume[0].numpy(), spacing)) for volume in volumes]
        described["factors"] = [{name: factors[name] for name in FACTORS} for factors in found]
    return described


def generate(
    pipeline: PatchVolumeLDMPipeline, number: int, *, grid: tuple[int, int, int], steps: int
) -> list[torch.Tensor]:
    """Volumes ``(1, x, y, z)`` in [0, 1]; volume i starts from the same noise whatever the network."""
    pipeline.set_progress_bar_config(disable=True)
    volumes: list[torch.Tensor] = []
    while len(volumes) < number:
        seeds = range(_FIRST_SEED + len(volumes), _FIRST_SEED + min(number, len(volumes) + _AT_ONCE))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        (generated,) = pipeline(
            size=grid,
            batch_size=len(generators),
            num_inference_steps=steps,
            generator=generators,
            output_type="pt",
            return_dict=False,
        )
        volumes.extend(generated)
    return volumes


@torch.inference_mode()
def held_out_losses(pipeline: PatchVolumeLDMPipeline, volumes: Sequence[torch.Tensor]) -> list[float]:
    """Training loss of each volume ``(1, x, y, z)`` in [0, 1], over times and noise that are the same for all networks."""
    objective = LatentDiffusionObjective(pipeline.scheduler)
    losses = []
    for place, volume in enumerate(volumes):
        latents = pipeline.encode(2 * volume[None] - 1).repeat(_DRAWS, 1, 1, 1, 1)
        batch = {"latents": latents, "step": list(range(_DRAWS)), "place": [place] * _DRAWS}
        losses.append(objective(pipeline.unet, batch, SampleNoise(0, batch)).item())
    return losses


def paired_statistic(
    statistic: Callable[[np.ndarray, np.ndarray], float], real: np.ndarray, pairs: np.ndarray
) -> float:
    """A statistic's difference between two synthetic sets whose features stand side by side in ``pairs``."""
    first, second = np.split(pairs, 2, axis=1)
    return statistic(real, first) - statistic(real, second)
