"""Volumes from a mask and one informed slice, window by window: GEM-3D (arXiv 2403.12852) and Make-A-Volume."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from voxdiff.models.unet_informed_slice import InformedSliceUNetModel
from voxdiff.pipelines.base import Generators, VolumePipeline
from voxdiff.pipelines.informed_slice_checks import check_conditions, check_parts, check_sampling
from voxdiff.pipelines.informed_slice_latents import encode_masks, prepare_informed_latents, prepare_mask_latents
from voxdiff.pipelines.informed_slice_requests import (
    MaskRequest,
    crop_in_plane,
    describe_conditions,
    find_start,
    read_informed_slices,
    read_masks,
)
from voxdiff.pipelines.known_slices import KnownSlices
from voxdiff.pipelines.mask_values import MaskEncoder, linear_mask_values
from voxdiff.pipelines.output import VolumePipelineOutput
from voxdiff.pipelines.sampling_loop import run_sampling_loop
from voxdiff.pipelines.slice_codec import decode_slices, encode_slices, slice_compression
from voxdiff.pipelines.slice_generator import generate_slice_latents
from voxdiff.pipelines.slice_windows import SliceWindow, plan_windows, tile_windows
from voxdiff.pipelines.window_batches import (
    cut_windows,
    gather_conditions,
    gather_known,
    spread_generators,
    write_windows,
)
from voxdiff.volumes import OutputType, VolumeInput, VolumeProcessor


class InformedSlicePipeline(VolumePipeline):
    """Latent diffusion of a volume from its mask and one informed slice (GEM-3D, Algorithm 1).

    Windows of consecutive axial slices are denoised one after the other, from the start slice up and down; each is
    given the slices that are there already. A network without channels for an informed slice is the paper's baseline
    Make-A-Volume: its windows are independent.

    Args:
        vae: 2D autoencoder of axial slices, of one or three channels.
        unet: Noise predictor of a window: noisy latents, mask latents and, if it has channels for it, the informed slice's.
        scheduler: One of the supported schedulers; its ``prediction_type`` says what both networks predict.
        slice_unet: Generator of informed slices, conditioned on their position in the volume.
        processor: ``VolumeProcessor.to_dict()`` of the images: orientation, spacing, grid, intensity rule and range.
        mask_values: Label -> value of the mask that the autoencoder sees, see
            :class:`voxdiff.pipelines.mask_values.MaskEncoder`; None is background -1 and foreground 1.
        overlap: Slices that a window shares with the last one, unless the call says otherwise.
        position_rule: How a slice's relative position is counted, ``"inclusive"`` or ``"official"``.

    Raises:
        ValueError: If the parts do not fit each other.

    Example:
        >>> pipe = InformedSlicePipeline.from_pretrained("org/informed-slice-brain")  # doctest: +SKIP
        >>> image = pipe("mask.nii.gz", informed_slice="other_patient.nii.gz").volumes[0]  # doctest: +SKIP
    """

    model_cpu_offload_seq = "slice_unet->unet->vae"
    _optional_components = ["slice_unet"]

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: InformedSliceUNetModel,
        scheduler: Any,
        slice_unet: UNet2DConditionModel | None = None,
        processor: dict | None = None,
        mask_values: dict | None = None,
        overlap: int = 1,
        position_rule: str = "inclusive",
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, slice_unet=slice_unet)
        self.volume_processor = VolumeProcessor.from_dict(processor or {})
        self.mask_encoder = MaskEncoder(linear_mask_values(1) if mask_values is None else mask_values)
        self.register_to_config(
            processor=self.volume_processor.to_dict(),
            mask_values=self.mask_encoder.to_dict(),
            overlap=overlap,
            position_rule=position_rule,
        )
        check_parts(vae, unet, slice_unet, position_rule)

    @property
    def takes_informed_slice(self) -> bool:
        """Whether the network has channels for an informed slice; without, it is Make-A-Volume."""
        return self.unet.config["in_channels"] == 3 * self.vae.config["latent_channels"]

    @property
    def size_divisor(self) -> int:
        """What x and y are padded to a multiple of."""
        divisor = self.unet.size_divisor
        if self.slice_unet is not None:
            divisor = max(divisor, 2 ** (len(self.slice_unet.config["block_out_channels"]) - 1))
        return divisor * slice_compression(self.vae)

    @torch.no_grad()
    def encode(self, volumes: torch.Tensor) -> torch.Tensor:
        """Volumes ``(batch, 1, x, y, z)`` in the value range to scaled latents, slice by slice."""
        return encode_slices(self.vae, volumes, device=self._execution_device)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents to volumes ``(batch, 1, x, y, z)``, slice by slice."""
        return decode_slices(self.vae, latents, device=self._execution_device)

    def encode_masks(self, mask: VolumeInput | list[VolumeInput]) -> torch.Tensor:
        """Latents of one mask or a list of them, to be handed to many calls as ``mask_latents``.

        Returns:
            ``(batch, channels, x, y, z)`` with as many slices as the mask has on the model's grid.

        Raises:
            ValueError: If a mask cannot be used.
        """
        return encode_masks(self, read_masks(mask, self.volume_processor, self.mask_encoder))

    @torch.no_grad()
    def generate_slice(
        self,
        position: float,
        size: Sequence[int],
        *,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        generator: Generators = None,
    ) -> torch.Tensor:
        """Latents of axial slices, to be handed to many calls as ``informed_slice_latents``.

        The arguments are those of :func:`voxdiff.pipelines.slice_generator.generate_slice_latents`.
        """
        sampling: dict[str, Any] = {"num_inference_steps": num_inference_steps, "eta": eta, "generator": generator}
        return generate_slice_latents(self, position, size, batch_size=batch_size, **sampling)

    @torch.no_grad()
    def __call__(
        self,
        mask: VolumeInput | list[VolumeInput],
        *,
        informed_slice: Any = None,
        informed_slice_latents: torch.Tensor | None = None,
        unit: str | None = None,
        background: float | None = None,
        start_position: float | int | None = None,
        propagation: str = "paper",
        known_slice_noise: str = "clean",
        window: int | None = None,
        overlap: int | None = None,
        mask_latents: torch.Tensor | None = None,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: OutputType = "nifti",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> VolumePipelineOutput | tuple:
        """Generate one volume a mask, each on its mask's own grid.

        A mask is turned to the model's orientation, and resampled, cropped or padded where the processor has a spacing or
        a size, by nearest neighbour. If x or y is not divisible by :attr:`size_divisor`, mask and informed slice are
        padded with background and the volume is cropped. If there are fewer slices than a window has, the mask's last slice
        is repeated and the volume is cropped.

        Args:
            mask: Path, NIfTI image, array or tensor ``(x, y, z)`` of labels, or a list of masks on one grid.
            informed_slice: How the volume shall look: a 2D array or tensor in the mask's own x and y, or an image of a single
                slice, scaled by itself; a volume (path, image, array or tensor), whose slice at the relative position of the
                start is taken; or ``(volume, index)``, counted on the model's grid. A list gives each mask its own. None:
                ``slice_unet`` generates one a mask.
            informed_slice_latents: Instead, ``(batch, channels, x, y)`` from :meth:`generate_slice`, one a mask or one for
                all.
            unit: Unit of `informed_slice`, where the model asks for it (``"HU"``).
            background: Value of `informed_slice` outside the field of view, in its unit.
            start_position: Where generation starts: from 0.0 to 1.0, or a slice of the mask on the model's grid. None: the
                centre.
            propagation: ``"paper"``: both directions continue from one first window. ``"official"``: they are independent.
            known_slice_noise: ``"clean"``, ``"matched"`` or ``"official"``, see
                :class:`voxdiff.pipelines.known_slices.KnownSlices`.
            window: Slices of a window; None is what the network was trained with.
            overlap: Slices that a window shares with the last one; None is the pipeline's.
            mask_latents: Of the same masks, from :meth:`encode_masks`.
            num_inference_steps: Solver steps a window.
            eta: Noise of DDIM's steps, 0 to 1 (official).
            generator: One for the whole batch, or one a mask (then each volume equals the one made alone). It draws the
                noise of the generated informed slice, of the whole volume, and then each step's, in the order of the plan.
            latents: Initial standard normal noise ``(batch, channels, x, y, z)`` of the volume on the latent grid, with at
                least as many slices as a window; a window takes the noise of its slices.
            output_type: ``"nifti"`` (on each mask's own grid), ``"pt"`` or ``"np"`` (output units, on the model's grid), or
                ``"latent"`` (scaled, padded in plane).
            return_dict: Whether to return a :class:`VolumePipelineOutput` instead of ``(volumes,)``.
            callback_on_step_end: Called as ``callback(pipe, index, timestep, tensors)`` after each step of each wave of
                windows, ``index`` counting from 0 in each wave; returns the tensors, changed or not.
            callback_on_step_end_tensor_inputs: Which tensors it gets; ``latents`` are those of the wave's windows.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If an argument does not fit the model.
        """
        started = time.perf_counter()
        requests = read_masks(mask, self.volume_processor, self.mask_encoder)
        batch, depth, rule = len(requests), requests[0].depth, self.config["position_rule"]
        self.check_common_inputs(
            batch_size=batch,
            num_inference_steps=num_inference_steps,
            generator=generator,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        check_sampling(self.scheduler, num_inference_steps, eta, known_slice_noise)
        check_conditions(
            self.takes_informed_slice,
            informed_slice=informed_slice,
            informed_slice_latents=informed_slice_latents,
            unit=unit,
            background=background,
            can_generate=self.slice_unet is not None,
            start_position=start_position,
            propagation=propagation,
            known_slice_noise=known_slice_noise,
            overlap=overlap,
        )
        start = find_start(start_position, depth, rule)
        windows = self.plan(depth, start, window, overlap, propagation)
        reading: dict[str, Any] = {"start": start, "rule": rule, "unit": unit, "background": background}
        given = read_informed_slices(informed_slice, requests, self.volume_processor, **reading)

        deepest = max(entry.first + entry.length for entry in windows)
        mask_latents = prepare_mask_latents(self, mask_latents, requests, deepest)
        sampling: dict[str, Any] = {"num_inference_steps": num_inference_steps, "eta": eta}
        informed = None
        if self.takes_informed_slice:
            informed = prepare_informed_latents(
                self, given, informed_slice_latents, requests, start=start, generator=generator, **sampling
            )
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        noise = self.prepare_latents(tuple(mask_latents.shape), generator, latents)
        sampling |= {"callback": callback_on_step_end, "callback_tensors": callback_on_step_end_tensor_inputs}
        volumes = self.denoise_volumes(windows, noise, mask_latents, informed, known_slice_noise, generator, **sampling)
        output = self.postprocess(volumes[..., :depth], output_type, requests)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (output,)
        made_by = "generated" if informed_slice_latents is None else "latents"
        conditions = describe_conditions(
            requests,
            given,
            otherwise=made_by if self.takes_informed_slice else None,
            start=start,
            propagation=propagation,
            known_slice_noise=known_slice_noise,
            eta=float(eta),
            windows=[[entry.first, entry.length] for entry in windows],
        )
        records = self.provenance(batch, generator, steps=num_inference_steps, started=started, conditions=conditions)
        return VolumePipelineOutput(volumes=output, provenance=records)

    def denoise_volumes(
        self,
        windows: Sequence[SliceWindow],
        noise: torch.Tensor,
        mask_latents: torch.Tensor,
        informed: torch.Tensor | None,
        known_slice_noise: str,
        generator: Generators,
        **sampling: Any,
    ) -> torch.Tensor:
        """Pure noise ``(batch, channels, x, y, z)`` to latents of volumes, wave after wave of windows (Algorithm 1)."""
        volumes = torch.zeros_like(noise)
        for _, entries in itertools.groupby(windows, key=lambda entry: entry.wave):
            wave = list(entries)
            known = gather_known(wave, volumes, known_slice_noise)
            seen = gather_conditions(wave, volumes, mask_latents, informed)
            generators = spread_generators(generator, len(noise), len(wave))
            made = self.denoise_window(cut_windows(wave, noise), seen, known, generator=generators, **sampling)
            write_windows(wave, made, volumes)
        return volumes

    def plan(
        self, depth: int, start: int, window: int | None = None, overlap: int | None = None, propagation: str = "paper"
    ) -> list[SliceWindow]:
        """The windows in which a volume of `depth` slices is generated; a shallower one is padded to one window."""
        window = self.unet.config["window"] if window is None else window
        overlap = self.config["overlap"] if overlap is None else overlap
        depth = max(depth, window)
        if not self.takes_informed_slice:
            return tile_windows(depth, window)
        return plan_windows(depth, start, window=window, overlap=overlap, propagation=propagation)

    def denoise_window(
        self,
        latents: torch.Tensor,
        conditions: torch.Tensor,
        known: KnownSlices,
        *,
        num_inference_steps: int,
        generator: Generators,
        **sampling: Any,
    ) -> torch.Tensor:
        """Denoise windows from noise ``(batch, channels, x, y, slices)``.

        Args:
            latents: Noise, scaled as the scheduler wants it.
            conditions: Latents of mask and informed slice, their channels one after the other.
            known: Slices that are there already.
            num_inference_steps: Solver steps.
            generator: None, or one a window.
            sampling: Further arguments of :func:`voxdiff.pipelines.sampling_loop.run_sampling_loop`.
        """
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        indicator = {"known": known.slots} if self.unet.config["known_slice_indicator"] else {}

        def predict(latents: torch.Tensor, index: int, timestep: torch.Tensor) -> torch.Tensor:
            network_input = self.scheduler_input(latents, timestep)
            shown = known.write(network_input, self.scheduler, index, timestep, generator)
            network_input = torch.cat([shown, conditions], dim=1).to(self.unet.dtype)
            return self.unet(network_input, timestep, **indicator).sample.float()

        return known.restore(run_sampling_loop(self, latents, predict, generator=generator, **sampling))

    def postprocess(self, latents: torch.Tensor, output_type: OutputType, requests: Sequence[MaskRequest]) -> Any:
        """Latents to NIfTI images on the grids of their masks, or to a tensor or an array on the model's grid."""
        if output_type == "latent":
            return latents
        volumes = crop_in_plane(self.decode(latents), requests[0].sides)
        low, high = self.volume_processor.value_range
        return self.volume_processor.postprocess(
            volumes.clamp(low, high).cpu(),
            output_type=output_type,
            geometries=[request.geometry for request in requests],
        )
