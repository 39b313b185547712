"""voxdiff's classes as diffusers' common tests need them.

Several upstream tests save a pickle and load it again. The public classes refuse pickles, so those tests see
subclasses that allow them and change nothing else: every other check of `from_pretrained` stays in force.
"""

import sys
from pathlib import Path
from unittest import mock

import torch
from cases import ModelCase, PipelineCase

from voxdiff import (
    BiFlowNet3DModel,
    InformedSlicePipeline,
    InformedSliceUNetModel,
    PatchVolumeLDMPipeline,
    WaveletDiffusionPipeline,
    WaveletUNet3DModel,
)
from voxdiff.schedulers import make_scheduler

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoencoders import make_autoencoder
from biflownets import TINY, make_biflownet
from informed_slice_pipelines import TINY_UNET, make_informed_unet, make_slice_autoencoder, make_slice_generator

GRID = (8, 8, 16)
SLICES = (8, 8, 6)


class AllowsPickles:
    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        with (
            mock.patch("voxdiff.models.base.refuse_pickle"),
            mock.patch("voxdiff.pipelines.base.refuse_pickled_components"),
            mock.patch("voxdiff.models.base.safetensors_only", lambda use_safetensors: use_safetensors),
            mock.patch("voxdiff.pipelines.base.safetensors_only", lambda use_safetensors: use_safetensors),
        ):
            return super().from_pretrained(*args, **kwargs)


class TestedUNet(AllowsPickles, WaveletUNet3DModel):
    pass


class TestedPipeline(AllowsPickles, WaveletDiffusionPipeline):
    pass


class TestedBiFlowNet(AllowsPickles, BiFlowNet3DModel):
    pass


class TestedLatentPipeline(AllowsPickles, PatchVolumeLDMPipeline):
    pass


class TestedInformedSliceUNet(AllowsPickles, InformedSliceUNetModel):
    pass


class TestedInformedSlicePipeline(AllowsPickles, InformedSlicePipeline):
    pass


class TranslationPipeline(TestedPipeline):
    """One contrast in, another out; upstream knows components only, so the configuration is the default here."""

    def __init__(
        self,
        unet: WaveletUNet3DModel,
        scheduler: object,
        processor: dict | None = {"intensity": "minmax"},  # noqa: B006 (diffusers reads the default)
        wavelet: str | None = "haar",
        band_scales: list = [3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],  # noqa: B006
        output_volumes: dict = {"image": 0},  # noqa: B006
        condition_volumes: dict | None = {"t2w": 0},  # noqa: B006
        label_volumes: dict | None = None,
    ) -> None:
        super().__init__(
            unet, scheduler, processor, wavelet, band_scales, output_volumes, condition_volumes, label_volumes
        )


def model_config() -> dict:
    return {"layers_per_block": 1, "norm_num_groups": 4, "block_out_channels": (8, 16)}


def components(**config) -> dict:
    torch.manual_seed(0)
    unet = WaveletUNet3DModel(**{**model_config(), **config})
    torch.nn.init.normal_(unet.conv_out.weight, std=0.05)
    return {"unet": unet, "scheduler": make_scheduler("wdm-ddpm")}


def model_inputs(x: int = 4, y: int = 4, z: int = 8) -> dict:
    sample = torch.randn(2, 8, x, y, z, generator=torch.Generator().manual_seed(0))
    return {"sample": sample, "timestep": torch.tensor([3, 500])}


def inputs(generator: torch.Generator) -> dict:
    common = {"batch_size": 1, "num_inference_steps": 2, "output_type": "pt"}
    return {"size": GRID, "generator": generator, **common}


def translation_inputs(generator: torch.Generator) -> dict:
    condition = torch.rand(GRID, generator=torch.Generator().manual_seed(1))
    return {
        "condition_volumes": {"t2w": condition},
        "generator": generator,
        "num_inference_steps": 2,
        "output_type": "pt",
    }


def latent_components() -> dict:
    unet = make_biflownet(in_channels=4, out_channels=4, null_condition=True)
    return {"vae": make_autoencoder(), "unet": unet, "scheduler": make_scheduler("med-ddpm")}


def latent_inputs(generator: torch.Generator) -> dict:
    return {"class_labels": 1, "guidance_scale": 2.0, **inputs(generator)}


def biflownet_inputs(x: int = 8, y: int = 8, z: int = 16) -> dict:
    sample = torch.randn(2, TINY["in_channels"], x, y, z, generator=torch.Generator().manual_seed(0))
    return {"sample": sample, "timestep": torch.tensor([3, 500]), "class_labels": torch.tensor([0, 1])}


def informed_slice_components() -> dict:
    parts = {"vae": make_slice_autoencoder(), "unet": make_informed_unet(), "slice_unet": make_slice_generator()}
    return {**parts, "scheduler": make_scheduler("gem-ddim")}


def informed_slice_unet_inputs(x: int = 8, y: int = 4, slices: int = 5) -> dict:
    sample = torch.randn(2, 12, x, y, slices, generator=torch.Generator().manual_seed(0))
    return {"sample": sample, "timestep": torch.tensor([3, 500]), "known": torch.eye(2, slices)}


def informed_slice_inputs(generator: torch.Generator) -> dict:
    mask = (torch.rand(SLICES, generator=torch.Generator().manual_seed(1)) > 0.5).numpy()
    plane = torch.rand(SLICES[:2], generator=torch.Generator().manual_seed(2))
    return {
        "mask": mask,
        "informed_slice": plane,
        "generator": generator,
        "num_inference_steps": 2,
        "output_type": "pt",
    }


CASES = [
    PipelineCase(
        name="WaveletDiffusionPipeline",
        pipeline_class=TestedPipeline,
        make_components=components,
        make_inputs=inputs,
        output_shape=(1, *GRID),
        required_params=frozenset({"batch_size", "size"}),
    ),
    PipelineCase(
        name="WaveletDiffusionPipeline_translation",
        pipeline_class=TranslationPipeline,
        make_components=lambda: components(in_channels=16, skip_mode="concat"),
        make_inputs=translation_inputs,
        output_shape=(1, *GRID),
        required_params=frozenset({"condition_volumes"}),
        batch_params=frozenset({"condition_volumes"}),
    ),
    PipelineCase(
        name="PatchVolumeLDMPipeline",
        pipeline_class=TestedLatentPipeline,
        make_components=latent_components,
        make_inputs=latent_inputs,
        output_shape=(1, *GRID),
        required_params=frozenset({"class_labels", "batch_size", "size", "guidance_scale"}),
    ),
    PipelineCase(
        name="InformedSlicePipeline",
        pipeline_class=TestedInformedSlicePipeline,
        make_components=informed_slice_components,
        make_inputs=informed_slice_inputs,
        output_shape=(1, *SLICES),
        required_params=frozenset({"mask", "informed_slice", "start_position", "propagation", "known_slice_noise"}),
        batch_params=frozenset({"mask"}),
    ),
    ModelCase(
        name="WaveletUNet3DModel",
        model_class=TestedUNet,
        make_config=model_config,
        make_inputs=model_inputs,
        output_shape=(8, 4, 4, 8),
        checkpointed_classes={"TestedUNet"},
        compiled_grids=[(4, 4, 4), (4, 4, 8), (8, 8, 8)],
        kind="unet",
    ),
    ModelCase(
        name="BiFlowNet3DModel",
        model_class=TestedBiFlowNet,
        make_config=lambda: dict(TINY),
        make_inputs=biflownet_inputs,
        output_shape=(TINY["out_channels"], 8, 8, 16),
        checkpointed_classes={"BiFlowDownBlock3D", "BiFlowMidBlock3D", "BiFlowUpBlock3D", "IntraPatchFlow"},
        compiled_grids=[(4, 4, 4), (4, 4, 8), (8, 8, 8)],
        kind="unet",
        inapplicable={"test_forward_with_norm_groups": "asks for two unequal first widths, which the flow cannot have"},
    ),
    ModelCase(
        name="InformedSliceUNetModel",
        model_class=TestedInformedSliceUNet,
        make_config=lambda: {**TINY_UNET, "known_slice_indicator": True},
        make_inputs=informed_slice_unet_inputs,
        output_shape=(4, 8, 4, 5),
        checkpointed_classes={"InformedSliceDownBlock", "InformedSliceMidBlock", "InformedSliceUpBlock"},
        compiled_grids=[(4, 4, 4), (4, 4, 8), (8, 4, 5)],
        kind="unet",
        inapplicable={"test_forward_with_norm_groups": "asks for as many channels out as in, conditions among them"},
    ),
]
