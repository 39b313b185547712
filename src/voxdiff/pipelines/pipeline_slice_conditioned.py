"""Volumes grown, completed and interpolated from any of their slices: cDPM (arXiv 2212.08034)."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.utils import logging

from voxdiff.models.unet_slice_conditioned import SliceConditionedUNetModel
from voxdiff.pipelines.base import Generators, VolumePipeline
from voxdiff.pipelines.informed_slice_requests import crop_in_plane, pad_in_plane
from voxdiff.pipelines.output import VolumePipelineOutput
from voxdiff.pipelines.sampling_loop import run_sampling_loop
from voxdiff.pipelines.slice_conditions import SliceRequest
from voxdiff.pipelines.slice_requests import check_slice_axis, read_request
from voxdiff.pipelines.slice_stages import SliceStage, plan_stages
from voxdiff.pipelines.stage_batches import batch_stages, cut_context, cut_targets, slot_positions, write_targets
from voxdiff.pipelines.window_batches import spread_generators
from voxdiff.schedulers import constrain_prediction
from voxdiff.volumes import OutputType, VolumeInput, VolumeProcessor

logger = logging.get_logger(__name__)


class SliceConditionedPipeline(VolumePipeline):
    """Diffusion of some slices of a volume given any others (Peng et al. 2022, cDPM).

    A volume is generated in stages of a few slices, each given slices that are there already; known slices take part
    as context from the first stage on. The network sees known slices clean; nothing is replaced while sampling.

    Args:
        unet: Predicts the noise of target slices from noisy targets and clean known slices.
        scheduler: One of the supported schedulers; its ``prediction_type`` says what the network predicts.
        processor: ``VolumeProcessor.to_dict()``: orientation, spacing, grid, intensity rule and range of the model.
        scheme: In which order slices are generated unless the call says otherwise, see
            :func:`voxdiff.pipelines.slice_stages.plan_stages`.
        slice_axis: Axis (x, y or z: 0, 1 or 2) along which the slices run.
        stage_size: Most slices that a stage generates.
        context_size: Most slices that a stage sees.
        max_slices: Most slices in one call of the network, as in its training (τ_max).

    Raises:
        ValueError: If the network's channels, the scheme, the axis or the sizes are impossible.

    Example:
        >>> pipe = SliceConditionedPipeline.from_pretrained("org/slice-brain")  # doctest: +SKIP
        >>> head = pipe(generator=torch.Generator().manual_seed(0)).volumes[0]  # doctest: +SKIP
        >>> thin = pipe(volume="thick_slices.nii.gz", factor=4).volumes[0]  # doctest: +SKIP
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: SliceConditionedUNetModel,
        scheduler: Any,
        processor: dict | None = None,
        scheme: str = "hierarchical",
        slice_axis: int = 2,
        stage_size: int = 10,
        context_size: int = 10,
        max_slices: int = 20,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.volume_processor = VolumeProcessor.from_dict(processor or {})
        self.register_to_config(
            processor=self.volume_processor.to_dict(),
            scheme=scheme,
            slice_axis=slice_axis,
            stage_size=stage_size,
            context_size=context_size,
            max_slices=max_slices,
        )
        self.plan(depth=1)  # raises on an impossible scheme or size
        check_slice_axis(slice_axis)
        channels = unet.config["in_channels"], unet.config["out_channels"]
        if channels != (1, 1):
            raise ValueError(
                f"The network takes {channels[0]} and gives {channels[1]} channels a slice; this pipeline makes volumes of "
                "one channel, give a network of one."
            )

    @property
    def size_divisor(self) -> int:
        """What the sides of a slice are padded to a multiple of."""
        return self.unet.size_divisor

    def plan(
        self,
        depth: int,
        known: Sequence[int] = (),
        *,
        scheme: str | None = None,
        stage_size: int | None = None,
        context_size: int | None = None,
        first_stage_size: int | None = None,
    ) -> list[SliceStage]:
        """The stages in which a volume of `depth` slices is generated; None is the pipeline's own setting."""
        settings = self._or_own(scheme=scheme, stage_size=stage_size, context_size=context_size)
        return plan_stages(
            depth, known=known, first_stage_size=first_stage_size, max_slices=self.config["max_slices"], **settings
        )

    @torch.no_grad()
    def __call__(
        self,
        *,
        known_slices: Mapping[int, Any] | None = None,
        volume: VolumeInput | None = None,
        known_indices: Sequence[int] | None = None,
        corrupted: Sequence[int] | None = None,
        extend: Sequence[int] | None = None,
        factor: int | None = None,
        slice_spacing: float | None = None,
        size: Sequence[int] | None = None,
        slice_axis: int | None = None,
        scheme: str | None = None,
        stage_size: int | None = None,
        context_size: int | None = None,
        first_stage_size: int | None = None,
        first_position: float | None = None,
        intensity_range: Sequence[float] | None = None,
        unit: str | None = None,
        background: float | None = None,
        batch_size: int = 1,
        max_batch: int | None = None,
        num_inference_steps: int = 50,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: OutputType = "nifti",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> VolumePipelineOutput | tuple:
        """Generate volumes: from nothing, around single slices, or around the slices of a volume.

        The result holds the known slices bit for bit (as float32) and is in their unit: the intensity rule is inverted
        for the slices between them. Around a volume it lies on that one's axes and in-plane grid, oblique ones included,
        and its affine puts each known slice where it was. Slices are counted in the model's orientation, from low to high.

        Args:
            known_slices: Index in the result -> slice: a 2D array or tensor over the model's other two axes, or a NIfTI
                image with one slice, of which the voxels, their size and the unit are read; the index says where it lies.
            volume: Path, NIfTI image, array or tensor ``(x, y, z)`` whose slices are known.
            known_indices: Slices of the volume that are used; the others are generated.
            corrupted: Slices of the volume that are not used but generated anew.
            extend: How many slices to generate below and above the volume, at the result's spacing.
            factor: How many times denser the slices shall lie: 4 puts three new ones between any two.
            slice_spacing: The same as a spacing in mm.
            size: Grid (x, y, z) where no volume gives it; None is the model's.
            slice_axis: Along which axis the slices run; None is the one that the network was trained on; it has seen no
                slices along another, of which a warning tells.
            scheme: ``"hierarchical"``, ``"autoregressive"`` or ``"anchored"``; None is the pipeline's, as for the sizes.
            stage_size: Most slices that a stage generates.
            context_size: Most slices that a stage sees.
            first_stage_size: Most slices of the first stage, which beside known slices has room for what `max_slices` leaves
                of them, or of the hierarchical scheme's comb; None is `stage_size`, for the comb as many as the network
                takes. It has no effect where known slices lie so close that no comb is made.
            first_position: Where, in slices of the model, the result's first slice lies; None puts the result in the
                middle of the model's grid.
            intensity_range: Values of the known slices that the ends of the model's range stand for, instead of what its
                rule finds in them (for few slices, whose percentiles are not the volume's) or of its own window in
                arbitrary units (for slices on another scale).
            unit: Unit of the known slices, where the model asks for it (``"HU"``).
            background: Their value outside the patient.
            batch_size: How many samples, all of the same condition.
            max_batch: Most sets of slices the network sees at once, against a shortage of memory; it changes the result by
                rounding only. None: all of a wave.
            num_inference_steps: Solver steps a stage.
            generator: One for the whole batch, or one a sample (then each sample equals the one drawn alone). It draws
                the noise of the whole volume, then each step's, in the order of the plan.
            latents: That noise, standard normal ``(batch, 1, x, y, z)``, with the sides of the slices padded to a multiple
                of :attr:`size_divisor`; a stage takes the noise of its targets.
            output_type: ``"nifti"``, ``"pt"`` or ``"np"`` (on the model's grid in plane), or ``"latent"`` (the same, in
                the value range). Without known slices they are in the model's output unit.
            return_dict: Whether to return a :class:`VolumePipelineOutput` instead of ``(volumes,)``.
            callback_on_step_end: Called as ``callback(pipe, index, timestep, tensors)`` after each step of each batch of
                stages, ``index`` counting from 0 in each; returns the tensors, changed or not.
            callback_on_step_end_tensor_inputs: Which tensors it gets; ``latents`` are those of the batch's targets.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If an argument does not fit the model, or nothing is left to generate.
        """
        started = time.perf_counter()
        self.check_common_inputs(
            batch_size=batch_size,
            num_inference_steps=num_inference_steps,
            generator=generator,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        self._check_call(max_batch, first_position)
        request = read_request(
            self.volume_processor,
            self.config["slice_axis"] if slice_axis is None else slice_axis,
            known_slices=known_slices,
            volume=volume,
            known_indices=known_indices,
            corrupted=corrupted,
            extend=extend,
            factor=factor,
            slice_spacing=slice_spacing,
            size=size,
            first_position=first_position,
            intensity_range=intensity_range,
            unit=unit,
            background=background,
        )
        if request.slice_axis != self.config["slice_axis"]:
            logger.warning(
                "slice_axis is %d, but the network has only seen slices along axis %d: look at the result, or use a model "
                "that was trained along it.",
                *(request.slice_axis, self.config["slice_axis"]),
            )
        settings = self._or_own(scheme=scheme, stage_size=stage_size, context_size=context_size)
        settings["first_stage_size"] = first_stage_size
        stages = self.plan(request.depth, request.known, **settings)
        if not stages:
            raise ValueError(
                f"Nothing to generate, the result has {request.depth} slices and all are known; give a factor above 1 "
                "for several slices, or extend or corrupted."
            )

        volumes = self.prepare_volumes(request, batch_size)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        noise = self.prepare_noise(request, volumes, generator, latents)
        batches = batch_stages(stages)
        self._num_loops = len(batches)
        for alike in batches:
            made = self.denoise_stages(
                cut_targets(alike, noise),
                cut_context(alike, volumes),
                slot_positions(alike, request.positions, batch_size),
                num_inference_steps=num_inference_steps,
                generator=spread_generators(generator, batch_size, len(alike)),
                max_batch=max_batch,
                callback=callback_on_step_end,
                callback_tensors=callback_on_step_end_tensor_inputs,
            )
            write_targets(alike, made, volumes)

        output = request.finish(crop_in_plane(volumes, request.sides), output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (output,)
        conditions = {**request.describe(), **_plain(settings), "stages": len(stages), "waves": stages[-1].wave + 1}
        records = self.provenance(
            batch_size,
            generator,
            steps=num_inference_steps,
            started=started,
            conditions=[conditions] * batch_size,
        )
        return VolumePipelineOutput(volumes=output, provenance=records)

    def prepare_volumes(self, request: SliceRequest, batch_size: int) -> torch.Tensor:
        """Volumes ``(batch, 1, x, y, slices)`` with what is known, padded in plane, background elsewhere."""
        sides = [-(-side // self.size_divisor) * self.size_divisor for side in request.sides]
        padded = pad_in_plane(request.clean, sides, request.outside)
        return padded.to(self._execution_device).repeat(batch_size, 1, 1, 1, 1)

    def prepare_noise(
        self, request: SliceRequest, volumes: torch.Tensor, generator: Generators, latents: torch.Tensor | None
    ) -> torch.Tensor:
        """Initial noise of the shape of `volumes`; drawn, and given, with the axes of the volume."""
        axis = 2 + request.slice_axis
        shape = tuple(volumes.movedim(-1, axis).shape)
        return self.prepare_latents(shape, generator, latents).movedim(axis, -1)

    def denoise_stages(
        self,
        latents: torch.Tensor,
        context: torch.Tensor,
        positions: torch.Tensor,
        *,
        num_inference_steps: int,
        generator: Generators = None,
        max_batch: int | None = None,
        callback: Callable[..., dict] | None = None,
        callback_tensors: Sequence[str] = ("latents",),
    ) -> torch.Tensor:
        """Denoise the targets of stages with equally many targets and context.

        Args:
            latents: Noise ``(stages, 1, x, y, targets)``, scaled as the scheduler wants it.
            context: Clean slices ``(stages, 1, x, y, context)`` in the value range, possibly none.
            positions: ``(stages, context + targets)`` in slices of the model.
            num_inference_steps: Solver steps.
            generator: None, or one a stage.
            max_batch: Most stages the network sees at once.
            callback: Called after each step.
            callback_tensors: Which tensors it gets.
        """
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        positions, most = positions.to(latents.device), max_batch or len(latents)

        def predict(latents: torch.Tensor, _: int, timestep: torch.Tensor) -> torch.Tensor:
            scaled = self.scheduler_input(latents, timestep)
            parts = zip(scaled.split(most), context.split(most), positions.split(most), strict=True)
            prediction = torch.cat([self.predict_targets(*part, timestep=timestep) for part in parts])
            return constrain_prediction(self.scheduler, prediction, timestep, latents, self.clip_slices)

        return run_sampling_loop(
            self, latents, predict, generator=generator, callback=callback, callback_tensors=callback_tensors
        )

    def predict_targets(
        self, noisy: torch.Tensor, context: torch.Tensor, positions: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """The network's output in float32 for the targets, whose slots follow those of the context."""
        count, dtype = context.shape[-1], self.unet.dtype
        sample = torch.cat([torch.zeros_like(context), noisy], dim=-1).to(dtype)
        known: dict[str, Any] = {}
        if count:
            known["known_slices"] = torch.cat([context, torch.zeros_like(noisy)], dim=-1).to(dtype)
            known["known"] = (torch.arange(sample.shape[-1], device=sample.device) < count).expand(len(sample), -1)
            known["num_targets"] = len(noisy) * noisy.shape[-1]
        return self.unet(sample, timestep, positions=positions, **known).sample[..., count:].float()

    def _check_call(self, max_batch: int | None, first_position: float | None) -> None:
        if max_batch is not None and (not isinstance(max_batch, int) or isinstance(max_batch, bool) or max_batch < 1):
            raise ValueError(f"max_batch is {max_batch!r}; give a whole number of at least 1.")
        if first_position is not None and self.unet.config["position_embedding"] == "relative":
            raise ValueError(
                "first_position was given, but this network knows the distances between slices only (position_embedding "
                "'relative'); leave it out."
            )

    def _or_own(self, **settings: Any) -> dict[str, Any]:
        return {name: self.config[name] if value is None else value for name, value in settings.items()}

    def clip_slices(self, slices: torch.Tensor) -> torch.Tensor:
        """Constraint on x0: it stays within the value range, whatever the scheduler."""
        low, high = self.volume_processor.value_range
        return slices.clamp(low, high)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON can hold them, whole numbers of numpy among them."""
    return {name: value if value is None or isinstance(value, str) else int(value) for name, value in settings.items()}
