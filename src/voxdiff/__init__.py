"""voxdiff: diffusion pipelines for 3D medical image synthesis.

The public names below are imported on first use, so that ``import voxdiff`` costs little more than ``import torch``.
"""

import importlib
import sys

__version__ = "0.1.0"

# Public name -> module that defines it. diffusers resolves `["voxdiff", "Class"]` entries of a model_index.json here.
_EXPORTS = {
    "ModelMixin": "diffusers",
    "SchedulerMixin": "diffusers",
    "DiffusionPipeline": "voxdiff.pipelines.auto",
    "Pipeline": "voxdiff.pipelines.auto",
    "AutoencoderKL3D": "voxdiff.models.autoencoder_kl_3d",
    "AutoencoderPatchVolume": "voxdiff.models.autoencoder_patch_volume",
    "BiFlowNet3DModel": "voxdiff.models.biflownet_3d",
    "InformedSlicePipeline": "voxdiff.pipelines.pipeline_informed_slice",
    "InformedSliceUNetModel": "voxdiff.models.unet_informed_slice",
    "PatchDiscriminator3D": "voxdiff.models.discriminator_patch_3d",
    "PatchVolumeLDMPipeline": "voxdiff.pipelines.pipeline_patch_volume_ldm",
    "SliceConditionedPipeline": "voxdiff.pipelines.pipeline_slice_conditioned",
    "SliceConditionedUNetModel": "voxdiff.models.unet_slice_conditioned",
    "VolumePipelineOutput": "voxdiff.pipelines.output",
    "WaveletDiffusionPipeline": "voxdiff.pipelines.pipeline_wavelet_diffusion",
    "WaveletUNet3DModel": "voxdiff.models.unet_wavelet_3d",
    "VolumeProcessor": "voxdiff.volumes",
    "load_volume": "voxdiff.volumes",
    "save_volumes": "voxdiff.volumes",
    "CohortDataset": "voxdiff.data.cohort",
    "make_subject": "voxdiff.data.cohort",
    "convert_state_dict": "voxdiff.hub.convert",
    "resolve_model": "voxdiff.hub.registry",
}

_ROOMS = ("data", "hub", "metrics", "models", "pipelines", "schedulers", "training", "volumes", "wavelets")

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return importlib.import_module(f"voxdiff.{name}")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'voxdiff' has no attribute {name!r}; it exports {', '.join(sorted(_EXPORTS))}.")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if "diffusers.pipelines.pipeline_loading_utils" in sys.modules:  # diffusers itself may be the one importing us
    importlib.import_module("voxdiff.pipelines")
