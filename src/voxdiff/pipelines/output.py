"""What every pipeline returns: volumes and the record of how each came to be."""

import resource
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
import torch
from diffusers.utils import BaseOutput


@dataclass
class VolumePipelineOutput(BaseOutput):
    """Generated volumes.

    Attributes:
        volumes: A list of NIfTI images (``output_type="nifti"``), or an array or tensor ``(batch, channels, x, y, z)``.
        provenance: One record a volume: package version, model, weights, seed, scheduler, steps, dtype, device,
            conditions, seconds and peak memory. Plain values, ready for JSON.
    """

    volumes: list[nib.Nifti1Image] | np.ndarray | torch.Tensor
    provenance: list[dict[str, Any]] = field(default_factory=list)


def seeds_of(generator: torch.Generator | list[torch.Generator] | None, batch_size: int) -> list[int | None]:
    """Seed each sample was drawn with; None where the global generator was used."""
    generators = generator if isinstance(generator, list) else [generator] * batch_size
    return [None if item is None else item.initial_seed() for item in generators]


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: allocated on a CUDA device, otherwise resident in this process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
