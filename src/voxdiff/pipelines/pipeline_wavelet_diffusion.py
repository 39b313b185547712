"""Wavelet diffusion: WDM (unconditional), cWDM (paired translation) and, without wavelets, the plain 3D DDPM."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch

from voxdiff.models.unet_wavelet_3d import WaveletUNet3DModel
from voxdiff.pipelines.base import Generators, VolumePipeline
from voxdiff.pipelines.output import VolumePipelineOutput
from voxdiff.pipelines.sampling_loop import run_sampling_loop
from voxdiff.schedulers import constrain_prediction
from voxdiff.volume_files import make_image
from voxdiff.volumes import OutputType, VolumeGeometry, VolumeProcessor, intensity_unit
from voxdiff.wavelets import WaveletTransform

Conditions = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


class WaveletDiffusionPipeline(VolumePipeline):
    """Diffusion on 3D Haar wavelet coefficients, 256³ without an autoencoder (Friedrich et al. 2024, WDM and cWDM).

    Args:
        unet: Network on the coefficients: noisy ones of every output volume first, then those of the conditions.
        scheduler: One of the supported schedulers; its ``prediction_type`` says what the network predicts.
        processor: ``VolumeProcessor.to_dict()``: orientation, spacing, grid, intensity rule and range of the model; None is
            the default processor.
        wavelet: ``"haar"``, or None for diffusion on the voxels (the plain 3D DDPM).
        band_scales: Divisors of the eight bands, see :class:`voxdiff.wavelets.WaveletTransform`.
        output_volumes: Name of each generated volume and its place in the output, such as ``{"t1": 0}``.
        condition_volumes: The same for the volumes a paired translation is conditioned on.
        label_volumes: Output volumes that are label maps, with their highest label, such as ``{"lesion": 3}``.

    Example:
        >>> pipe = WaveletDiffusionPipeline.from_pretrained("org/wdm-brats")  # doctest: +SKIP
        >>> image = pipe(num_inference_steps=50, generator=torch.Generator().manual_seed(0)).volumes[0]  # doctest: +SKIP
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: WaveletUNet3DModel,
        scheduler: Any,
        processor: dict | None = None,
        wavelet: str | None = "haar",
        band_scales: list = [3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],  # noqa: B006 (diffusers reads the default's type)
        output_volumes: dict = {"image": 0},  # noqa: B006
        condition_volumes: dict | None = None,
        label_volumes: dict | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(
            processor=VolumeProcessor.from_dict(processor or {}).to_dict(),
            wavelet=wavelet,
            band_scales=[float(scale) for scale in band_scales],
            output_volumes=dict(output_volumes),
            condition_volumes=dict(condition_volumes) if condition_volumes else None,
            label_volumes=dict(label_volumes) if label_volumes else None,
        )
        self.volume_processor = VolumeProcessor.from_dict(processor or {})
        self.transform = WaveletTransform(wavelet, tuple(float(scale) for scale in band_scales))
        self.output_names = _in_order(output_volumes)
        self.condition_names = _in_order(condition_volumes or {})
        self._check_channels()

    @property
    def size_divisor(self) -> int:
        """What every size of a volume must be divisible by."""
        return self.unet.size_divisor * self.transform.stride

    def encode(self, volumes: torch.Tensor) -> torch.Tensor:
        """Volumes ``(batch, volumes, x, y, z)`` in the processor's value range to network coefficients."""
        return self.transform.analysis(volumes)

    def decode(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Network coefficients to volumes ``(batch, volumes, x, y, z)``, the inverse of :meth:`encode`."""
        return self.transform.synthesis(coefficients)

    def clip_volumes(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Constraint on x0: the volume it stands for stays within the value range (not the bands one by one)."""
        low, high = self.volume_processor.value_range
        return self.encode(self.decode(coefficients).clamp(low, high))

    def processor_of(self, name: str) -> VolumeProcessor:
        """The volume processor of one named volume: label maps have their own intensity rule."""
        highest = (self.config.label_volumes or {}).get(name)
        if highest is None:
            return self.volume_processor
        geometry = {key: getattr(self.volume_processor, key) for key in ("orientation", "spacing", "size", "padding")}
        return VolumeProcessor(
            **geometry, intensity="labels", high=highest, value_range=self.volume_processor.value_range, background=0
        )

    def check_inputs(
        self,
        subjects: list[Mapping[str, Any]],
        size: Sequence[int] | None,
        unit: str | None = None,
        background: float | None = None,
    ) -> None:
        """Raise ValueError, in one sentence, if the conditions or the grid do not fit this model."""
        for volumes in subjects:
            if set(volumes) != set(self.condition_names):
                raise ValueError(
                    f"condition_volumes names {_listing(volumes)}; this model takes {_listing(self.condition_names)}."
                )
        if self.condition_names and not subjects:
            raise ValueError(
                f"This model translates volumes: give condition_volumes with {_listing(self.condition_names)}."
            )
        if subjects and size is not None:
            raise ValueError("size was given together with condition_volumes, whose grid decides; leave size out.")
        if not subjects and (unit is not None or background is not None):
            raise ValueError("unit and background describe condition volumes, and none was given; leave them out.")
        if not subjects:
            self._check_grid(size or self.volume_processor.size)

    def _check_grid(self, size: Sequence[int] | None) -> None:
        if size is None:
            raise ValueError("This model has no grid of its own and no condition gives one: pass size=(x, y, z).")
        self.check_grid(size, self.size_divisor)

    def prepare_conditions(
        self, subjects: list[Mapping[str, Any]], unit: str | None, background: float | None
    ) -> tuple[torch.Tensor | None, list[VolumeGeometry] | None]:
        """Coefficients ``(batch, ...)`` of the condition volumes and, per sample, the grid the result goes back to."""
        if not subjects:
            return None, None
        tensors, geometries = [], []
        for volumes in subjects:
            loaded = [
                self._fit(self.processor_of(name), volumes[name], unit, background) for name in self.condition_names
            ]
            shapes = {name: tuple(item[0].shape[2:]) for name, item in zip(self.condition_names, loaded, strict=True)}
            if len(set(shapes.values())) > 1:
                raise ValueError(f"The condition volumes lie on different grids, {shapes}; resample them to one grid.")
            tensors.append(torch.cat([tensor for tensor, _ in loaded], dim=1))
            geometries.append(loaded[0][1])
        if len({tuple(tensor.shape) for tensor in tensors}) > 1:
            raise ValueError("The subjects of this batch lie on different grids; run them one at a time.")
        device = self._execution_device
        return self.encode(torch.cat(tensors).to(device)).to(self.unet.dtype), geometries

    @torch.no_grad()
    def __call__(
        self,
        condition_volumes: Conditions = None,
        *,
        batch_size: int = 1,
        size: Sequence[int] | None = None,
        num_inference_steps: int = 50,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: OutputType = "nifti",
        unit: str | None = None,
        background: float | None = None,
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> VolumePipelineOutput | tuple:
        """Generate volumes.

        Args:
            condition_volumes: For a translation model: name → volume (path, NIfTI image, array or tensor), or a list of
                such mappings, one a subject. The result lies on the first condition's own grid.
            batch_size: How many volumes; with one subject's conditions, that many samples of it.
            size: Another grid (x, y, z) than the model's own, at the same spacing.
            num_inference_steps: Solver steps, 1 to 1000.
            generator: One for the whole batch, or one a sample (then each sample equals the one drawn alone).
            latents: Initial standard normal noise ``(batch, channels, x, y, z)`` on the network's grid.
            output_type: ``"nifti"``, ``"pt"`` or ``"np"`` (output units), or ``"latent"`` (network coefficients).
            unit: Unit of the conditions, where the model asks for it (``"HU"``).
            background: Value outside the field of view of the conditions, in their unit.
            return_dict: Whether to return a :class:`VolumePipelineOutput` instead of ``(volumes,)``.
            callback_on_step_end: Called as ``callback(pipe, index, timestep, tensors)`` after each step; returns the
                tensors, changed or not.
            callback_on_step_end_tensor_inputs: Which tensors it gets.

        Raises:
            ValueError: If an argument does not fit the model.
        """
        started = time.perf_counter()
        subjects = _as_subjects(condition_volumes, batch_size)
        batch_size = len(subjects) or batch_size
        self.check_common_inputs(
            batch_size=batch_size,
            num_inference_steps=num_inference_steps,
            generator=generator,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        self.check_inputs(subjects, size, unit, background)
        conditions, geometries = self.prepare_conditions(subjects, unit, background)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        latents = self.prepare_latents(self._latent_shape(batch_size, size, conditions), generator, latents)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        latents = self.denoise(latents, conditions, generator, *callback)
        volumes = (
            latents if output_type == "latent" else self.postprocess(self.decode(latents), output_type, geometries)
        )
        self.maybe_free_model_hooks()
        if not return_dict:
            return (volumes,)
        records = self.provenance(
            batch_size, generator, steps=num_inference_steps, started=started, conditions=_describe(subjects)
        )
        return VolumePipelineOutput(volumes=volumes, provenance=records)

    def denoise(
        self,
        latents: torch.Tensor,
        conditions: torch.Tensor | None,
        generator: Generators,
        callback: Callable[..., dict] | None = None,
        callback_tensors: Sequence[str] = ("latents",),
    ) -> torch.Tensor:
        """The sampling loop: coefficients of pure noise ``(batch, channels, x, y, z)`` to coefficients of volumes."""

        def predict(latents: torch.Tensor, index: int, timestep: torch.Tensor) -> torch.Tensor:
            network_input = self.scheduler_input(latents, timestep).to(self.unet.dtype)
            if conditions is not None:
                network_input = torch.cat([network_input, conditions], dim=1)
            prediction = self.unet(network_input, timestep).sample.float()
            return constrain_prediction(self.scheduler, prediction, timestep, latents, self.clip_volumes)

        steps: dict[str, Any] = {"callback": callback, "callback_tensors": callback_tensors}
        return run_sampling_loop(self, latents, predict, generator=generator, **steps)

    def postprocess(
        self, volumes: torch.Tensor, output_type: OutputType, geometries: list[VolumeGeometry] | None
    ) -> Any:
        """Volumes in the value range to NIfTI images, tensors or arrays in output units."""
        low, high = self.volume_processor.value_range
        volumes = volumes.clamp(low, high).cpu()
        parts = [
            self.processor_of(name).postprocess(
                volumes[:, place : place + 1], output_type=output_type, geometries=geometries
            )
            for place, name in enumerate(self.output_names)
        ]
        if output_type != "nifti":
            return torch.cat(parts, dim=1) if output_type == "pt" else np.concatenate(parts, axis=1)
        if len(parts) == 1:
            return parts[0]
        return [_side_by_side(images) for images in zip(*parts, strict=True)]

    def _latent_shape(
        self, batch_size: int, size: Sequence[int] | None, conditions: torch.Tensor | None
    ) -> tuple[int, ...]:
        channels = len(self.output_names) * self.transform.channels_per_volume
        if conditions is not None:
            return (batch_size, channels, *conditions.shape[2:])
        grid = cast("Sequence[int]", size or self.volume_processor.size)
        return (batch_size, channels, *(count // self.transform.stride for count in grid))

    def _fit(
        self, processor: VolumeProcessor, volume: Any, unit: str | None, background: float | None
    ) -> tuple[torch.Tensor, VolumeGeometry]:
        """Preprocess one volume; without a grid of the model's own, pad it to the next grid the network takes."""
        if processor.intensity == "labels":
            unit = background = None
        tensor, geometry = processor.preprocess(volume, unit=unit, background=background)
        size = tuple(-(-count // self.size_divisor) * self.size_divisor for count in tensor.shape[2:])
        if size == tuple(tensor.shape[2:]):
            return tensor, geometry
        return replace(processor, size=size).preprocess(volume, unit=unit, background=background)

    def _check_channels(self) -> None:
        channels = self.transform.channels_per_volume
        outputs, conditions = len(self.output_names), len(self.condition_names)
        expected = (channels * (outputs + conditions), channels * outputs)
        received = (self.unet.config.in_channels, self.unet.config.out_channels)
        if received != expected:
            raise ValueError(
                f"The U-Net has {received[0]} input and {received[1]} output channels, but {outputs} output and "
                f"{conditions} condition volumes with wavelet={self.config.wavelet!r} need {expected[0]} and {expected[1]}."
            )


def _in_order(places: Mapping[str, int]) -> list[str]:
    """Names by place; model_index.json sorts its keys, so the place is stored."""
    names = sorted(places, key=lambda name: places[name])
    if [places[name] for name in names] != list(range(len(names))):
        raise ValueError(f"Volumes are numbered {dict(places)}; number them 0, 1, 2, ... without gaps.")
    return names


def _side_by_side(images: Sequence[nib.Nifti1Image]) -> nib.Nifti1Image:
    """One float32 NIfTI image with the volumes along its fourth axis; its unit is theirs if they share one."""
    units = {intensity_unit(image) for image in images}
    values = np.stack([image.get_fdata(dtype=np.float32) for image in images], axis=-1)
    return make_image(values, images[0].affine, unit=units.pop() if len(units) == 1 else None)


def _as_subjects(condition_volumes: Conditions, batch_size: int) -> list[Mapping[str, Any]]:
    if condition_volumes is None:
        return []
    if not condition_volumes:
        raise ValueError("condition_volumes is empty; give name -> volume, or leave it out.")
    if isinstance(condition_volumes, Mapping):
        return [condition_volumes] * batch_size
    if batch_size not in (1, len(condition_volumes)):
        raise ValueError(f"batch_size is {batch_size}, but {len(condition_volumes)} subjects were given; leave it out.")
    return list(condition_volumes)


def _describe(subjects: list[Mapping[str, Any]]) -> list[dict[str, str]] | None:
    """Where each subject's conditions came from: a path, or what kind of object it was."""

    def origin(volume: Any) -> str:
        return str(volume) if isinstance(volume, (str, Path)) else type(volume).__name__

    return [{name: origin(volume) for name, volume in volumes.items()} for volumes in subjects] or None


def _listing(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
