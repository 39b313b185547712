"""Latent diffusion of volumes: 3D MedDiffusion (arXiv 2412.13059) and, with other parts, the plain 3D LDM."""

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from voxdiff.models.autoencoder_kl_3d import AutoencoderKL3D
from voxdiff.models.autoencoder_patch_volume import AutoencoderPatchVolume
from voxdiff.models.biflownet_3d import BiFlowNet3DModel
from voxdiff.models.unet_wavelet_3d import WaveletUNet3DModel
from voxdiff.models.volume_conditions import NULL_LABEL
from voxdiff.pipelines.base import Generators, VolumePipeline
from voxdiff.pipelines.output import VolumePipelineOutput
from voxdiff.pipelines.patch_volume_classes import find_class, plain_classes, read_classes
from voxdiff.pipelines.patch_volume_parts import check_parts
from voxdiff.pipelines.patch_volume_requests import (
    Labels,
    Scalars,
    VolumeRequest,
    check_guidance,
    check_spacing,
    count_volumes,
    make_requests,
)
from voxdiff.pipelines.resampling import resample_volume
from voxdiff.pipelines.sampling_loop import run_sampling_loop
from voxdiff.schedulers import constrain_prediction
from voxdiff.volumes import OutputType, VolumeProcessor


class PatchVolumeLDMPipeline(VolumePipeline):
    """Diffusion on the latents of a 3D autoencoder, conditioned on a class and on named numbers.

    Args:
        vae: Patch-Volume autoencoder (with ``patch_size=None`` a VQ-GAN), or its KL form; the range or the statistics of
            its latents must be set.
        unet: BiFlowNet on the normalised latents, or a plain 3D U-Net without conditions.
        scheduler: One of the supported schedulers; its ``prediction_type`` says what the network predicts.
        processor: ``VolumeProcessor.to_dict()``: orientation, spacing, grid, intensity rule and range of the model; None is
            the default processor.
        classes: Name -> ``{"id": label, "size": [x, y, z], "spacing": [x, y, z], "intensity": ...}``: what a class has
            otherwise than the processor, see :func:`voxdiff.pipelines.patch_volume_classes.read_classes`. None: classes,
            if the network has any, are known by their label and share the processor.
        clip_latents: Whether the sampler keeps x0 within [-1, 1] (published); not for latents of an AutoencoderKL3D,
            which have no bounds.
        latent_range: ``{"low": ..., "high": ...}``, what -1 and 1 of the network are among the autoencoder's latents; None
            takes it from the autoencoder. A saved pipeline has it, so that another autoencoder is not taken for its own.

    Raises:
        ValueError: If the parts do not fit each other.

    Example:
        >>> pipe = PatchVolumeLDMPipeline.from_pretrained("org/3d-meddiffusion")  # doctest: +SKIP
        >>> knee = pipe("MRKnee", num_inference_steps=50).volumes[0]  # doctest: +SKIP
    """

    model_cpu_offload_seq = "unet->vae"

    def __init__(
        self,
        vae: AutoencoderPatchVolume | AutoencoderKL3D,
        unet: BiFlowNet3DModel | WaveletUNet3DModel,
        scheduler: Any,
        processor: dict | None = None,
        classes: dict | None = None,
        clip_latents: bool = True,
        latent_range: dict | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)
        self.volume_processor = VolumeProcessor.from_dict(processor or {})
        self.volume_classes = read_classes(classes, self.volume_processor, unet.config.get("num_class_embeds"))
        self.register_to_config(
            processor=self.volume_processor.to_dict(),
            classes=plain_classes(classes) if classes else None,
            clip_latents=clip_latents,
            latent_range=check_parts(vae, unet, clip_latents=clip_latents, latent_range=latent_range),
        )
        for entry in self.volume_classes.values():
            if entry.processor.size is not None:
                self.check_grid(entry.processor.size, self.size_divisor)

    @property
    def size_divisor(self) -> int:
        """What every size of a volume must be divisible by."""
        return self.unet.size_divisor * self.vae.compression

    @property
    def scalar_names(self) -> list[str]:
        """Names of the scalar conditions, in the network's order."""
        return getattr(self.unet, "scalar_names", [])

    @property
    def null_condition(self) -> bool:
        """Whether the network was trained without class and scalars too, which guidance and unconditional calls need."""
        return bool(self.unet.config.get("null_condition"))

    @property
    def optional_scalars(self) -> bool:
        """Whether the network was trained with single scalars absent, so that any of them may be left out."""
        return bool(self.unet.config.get("optional_scalars"))

    @property
    def guidance_scale(self) -> float:
        """Guidance of the last call; a callback changes it by setting ``_guidance_scale``, as in diffusers."""
        return self._guidance_scale

    def encode(self, volumes: torch.Tensor) -> torch.Tensor:
        """Volumes ``(batch, 1, x, y, z)`` in the value range to the normalised latents that the network sees."""
        return self.vae.normalize_latents(self.vae.encode(volumes.to(self.vae.dtype)).latents.float())

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised latents to volumes ``(batch, 1, x, y, z)`` in the value range, one at a time to save memory.

        Raises:
            ValueError: If a latent is not finite: its nearest code would look like any other.
        """
        if not torch.isfinite(latents).all():
            raise ValueError(
                f"The latents to decode are not finite (network in {self.unet.dtype}); use float32 or bfloat16, or another "
                "checkpoint."
            )
        latents = self.vae.denormalize_latents(latents).to(self.vae.dtype)
        return torch.cat([self.vae.decode(one).sample.float() for one in latents.split(1)])

    def clip_x0(self, latents: torch.Tensor) -> torch.Tensor:
        """Constraint on x0: normalised latents stay within [-1, 1], the range of the codebook."""
        return latents.clamp(-1, 1)

    def processor_of(self, label: str | int | None = None) -> VolumeProcessor:
        """The volume processor of one class, by name or label; None is the pipeline's own."""
        return self.volume_processor if label is None else find_class(self.volume_classes, label).processor

    def check_inputs(
        self,
        requests: Sequence[VolumeRequest],
        size: Sequence[int] | None,
        spacing: Sequence[float] | None,
        guidance_scale: float,
        output_type: str,
    ) -> None:
        """Raise ValueError, in one sentence, if the grid, the spacing or the guidance does not fit the model."""
        grids = {request.name: request.processor.size for request in requests}
        for grid in [size] if size is not None else grids.values():
            if grid is None:
                raise ValueError("This model has no grid of its own: pass size=(x, y, z).")
            self.check_grid(grid, self.size_divisor)
        if size is None and len(set(grids.values())) > 1:
            raise ValueError(f"The classes of this call have different grids, {grids}; call once a grid, or pass size.")
        if spacing is not None:
            check_spacing(requests, spacing, output_type)
        check_guidance(requests, guidance_scale, null_condition=self.null_condition)
        if not self.config["clip_latents"] and _clips(self.scheduler):
            raise ValueError(
                f"{type(self.scheduler).__name__} clips x0 (clip_sample), but this model's clip_latents is False; give it a "
                "scheduler with clip_sample=False."
            )

    def prepare_conditions(self, requests: Sequence[VolumeRequest]) -> dict[str, torch.Tensor]:
        """What the network takes beside latents and time: ``class_labels`` (batch,) and ``scalars`` (batch, number)."""
        device, conditions = self._execution_device, {}
        if self.volume_classes:
            labels = [NULL_LABEL if request.label is None else request.label for request in requests]
            conditions["class_labels"] = torch.tensor(labels, device=device)
        if self.scalar_names:
            rows = [[request.scalars.get(name, math.nan) for name in self.scalar_names] for request in requests]
            conditions["scalars"] = torch.tensor(rows, device=device)
        return conditions

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels = None,
        *,
        size: Sequence[int] | None = None,
        spacing: Sequence[float] | None = None,
        scalars: Scalars = None,
        guidance_scale: float = 1.0,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: OutputType = "nifti",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> VolumePipelineOutput | tuple:
        """Generate volumes.

        Sizes: every grid whose sizes :attr:`size_divisor` divides is generated as asked, at the class's spacing, although
        the model was trained on the grids of its classes only; any other grid is refused, none is padded or cropped.
        ``spacing`` alone resamples: a volume is generated at its class's spacing and then brought to the asked one.

        Args:
            class_labels: Name or label of a class, or one a volume; the classes of one call share a grid. Without class
                and scalars, a model with :attr:`null_condition` draws from all classes, with the pipeline's own processor.
            size: Another grid (x, y, z) than the class's own, at the same spacing.
            spacing: Voxel size in mm (x, y, z) that the result is resampled to, about its centre.
            scalars: Name -> number, or one a volume, in the units of the training data: all of :attr:`scalar_names`, or
                some of them where they are :attr:`optional_scalars`.
            guidance_scale: Classifier-free guidance (Ho & Salimans 2022), away from the network's output without class and
                scalars: 1 is none; above 1 only for models with :attr:`null_condition`.
            batch_size: How many volumes; lists of conditions have that length, or give it.
            num_inference_steps: Solver steps, 1 to 1000.
            generator: One for the whole batch, or one a sample (then each sample equals the one drawn alone).
            latents: Initial standard normal noise ``(batch, channels, x, y, z)`` on the latent grid.
            output_type: ``"nifti"``, ``"pt"`` or ``"np"`` (output units of each class), or ``"latent"`` (normalised).
            return_dict: Whether to return a :class:`VolumePipelineOutput` instead of ``(volumes,)``.
            callback_on_step_end: Called as ``callback(pipe, index, timestep, tensors)`` after each step; returns the
                tensors, changed or not.
            callback_on_step_end_tensor_inputs: Which tensors it gets.

        Raises:
            ValueError: If an argument does not fit the model.
        """
        started = time.perf_counter()
        batch_size = count_volumes(batch_size, class_labels, scalars)
        self.check_common_inputs(
            batch_size=batch_size,
            num_inference_steps=num_inference_steps,
            generator=generator,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        requests = self._make_requests(batch_size, class_labels, scalars)
        self.check_inputs(requests, size, spacing, guidance_scale, output_type)
        grid = tuple(size or cast("Sequence[int]", requests[0].processor.size))
        conditions = self.prepare_conditions(requests)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        latents = self.prepare_latents(self._latent_shape(batch_size, grid), generator, latents)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        latents = self.denoise(latents, conditions, guidance_scale, generator, *callback)
        volumes = (
            latents
            if output_type == "latent"
            else self.postprocess(self.decode(latents), output_type, requests, spacing)
        )
        self.maybe_free_model_hooks()
        if not return_dict:
            return (volumes,)
        records = self.provenance(
            batch_size,
            generator,
            steps=num_inference_steps,
            started=started,
            conditions=[request.describe(grid, spacing, guidance_scale) for request in requests],
        )
        return VolumePipelineOutput(volumes=volumes, provenance=records)

    def denoise(
        self,
        latents: torch.Tensor,
        conditions: Mapping[str, torch.Tensor],
        guidance_scale: float,
        generator: Generators,
        callback: Callable[..., dict] | None = None,
        callback_tensors: Sequence[str] = ("latents",),
    ) -> torch.Tensor:
        """The sampling loop: pure noise ``(batch, channels, x, y, z)`` to normalised latents of volumes."""
        self._guidance_scale = guidance_scale

        def predict(latents: torch.Tensor, index: int, timestep: torch.Tensor) -> torch.Tensor:
            prediction = self.predict(latents, timestep, conditions, self._guidance_scale)
            if not self.config["clip_latents"]:
                return prediction
            return constrain_prediction(self.scheduler, prediction, timestep, latents, self.clip_x0)

        steps: dict[str, Any] = {"callback": callback, "callback_tensors": callback_tensors}
        return run_sampling_loop(self, latents, predict, generator=generator, **steps)

    def predict(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        conditions: Mapping[str, torch.Tensor],
        guidance_scale: float,
    ) -> torch.Tensor:
        """Network output in float32; under guidance, of a batch with and without the conditions in one call."""
        network_input = self.scheduler_input(latents, timestep).to(self.unet.dtype)
        if guidance_scale == 1:
            return self.unet(network_input, timestep, **conditions).sample.float()
        absent = {
            name: torch.full_like(given, math.nan if given.is_floating_point() else NULL_LABEL)
            for name, given in conditions.items()
        }
        doubled = {name: torch.cat([given, absent[name]]) for name, given in conditions.items()}
        output = self.unet(torch.cat([network_input, network_input]), timestep, **doubled).sample.float()
        conditional, unconditional = output.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def postprocess(
        self,
        volumes: torch.Tensor,
        output_type: OutputType,
        requests: Sequence[VolumeRequest],
        spacing: Sequence[float] | None = None,
    ) -> Any:
        """Volumes in the value range to NIfTI images, tensors or arrays, each by the processor of its class."""
        low, high = self.volume_processor.value_range
        parts = []
        for volume, request in zip(volumes.float().clamp(low, high).cpu(), requests, strict=True):
            processor = request.processor
            if spacing is not None:
                volume, processor = resample_volume(volume, processor, spacing)
            parts.append(processor.postprocess(volume[None], output_type=output_type))
        if output_type == "nifti":
            return [image for images in parts for image in images]
        return torch.cat(parts) if output_type == "pt" else np.concatenate(parts)

    def _make_requests(self, count: int, class_labels: Labels, scalars: Scalars) -> list[VolumeRequest]:
        return make_requests(
            count,
            class_labels,
            scalars,
            classes=self.volume_classes,
            processor=self.volume_processor,
            scalar_names=self.scalar_names,
            null_condition=self.null_condition,
            optional_scalars=self.optional_scalars,
        )

    def _latent_shape(self, batch_size: int, grid: Sequence[int]) -> tuple[int, ...]:
        """Shape of the latents; decoding, unlike encoding, does not need whole patches."""
        return (batch_size, self.vae.config["latent_channels"], *(count // self.vae.compression for count in grid))


def _clips(scheduler: Any) -> bool:
    """Whether the scheduler's own step clips x0; other solvers only hand the key on."""
    return "clip_sample" in inspect.signature(type(scheduler).__init__).parameters and scheduler.config["clip_sample"]
