"""What all pipelines share: safe loading with provenance, and the checks of the common arguments."""

import hashlib
import inspect
import math
import os
import time
from collections.abc import Container, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor

import voxdiff
from voxdiff.models.base import (
    PICKLE_SUFFIXES,
    align_weights,
    refuse_pickle,
    refuse_pickled_components,
    safetensors_only,
)
from voxdiff.pipelines.output import peak_memory_mb, seeds_of
from voxdiff.schedulers import check_scheduler

OUTPUT_TYPES = ("nifti", "pt", "np", "latent")
Generators = torch.Generator | list[torch.Generator] | None


class VolumePipeline(diffusers.DiffusionPipeline):
    """Base of every voxdiff pipeline. Not used on its own."""

    _callback_tensor_inputs = ["latents"]
    _loaded_from: dict[str, Any] | None = None
    _num_loops = 1

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs: Any):
        """Load a pipeline from a folder or a Hub repository; weights must be safetensors.

        Takes diffusers' arguments: ``dtype``, ``variant``, ``revision``, ``cache_dir``, ``local_files_only``,
        components to replace, ... The SHA-256 of every weight file read is recorded for the provenance of the volumes.

        Args:
            pretrained_model_name_or_path: A folder that holds a ``model_index.json``, or ``"organisation/name"``.

        Raises:
            ValueError: If the weights are a pickle, or do not fit the model's configuration.
        """
        source = os.fspath(pretrained_model_name_or_path)
        refuse_pickle(source)
        kwargs["use_safetensors"] = safetensors_only(kwargs.get("use_safetensors"))
        folder, revision = source, None
        if not os.path.isdir(source):
            folder = cls._download(source, **kwargs)
            revision = Path(folder).name
        refuse_pickled_components(folder)
        pipe = super().from_pretrained(folder, **kwargs)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                align_weights(part)
        pipe.register_to_config(_name_or_path=source)
        weights = _hash_weights(folder, variant=kwargs.get("variant"), replaced=kwargs)
        pipe._loaded_from = {"model": source, "revision": revision, "weights_sha256": weights}
        return pipe

    @classmethod
    def _download(cls, source: str, **kwargs: Any) -> str:
        try:
            return cls.download(source, **kwargs)
        except OSError as error:
            if "safetensors" not in str(error):
                raise
            raise ValueError(
                f"{source} has no safetensors weights ({', '.join(PICKLE_SUFFIXES)} files are pickles, which voxdiff "
                "refuses): turn its checkpoint into a pipeline folder with `voxdiff convert`."
            ) from error

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call, for callbacks."""
        return self._num_timesteps

    @property
    def num_loops(self) -> int:
        """How often `SliceConditionedPipeline`, which makes a volume in stages, goes through these steps in the last call."""
        return self._num_loops

    def check_common_inputs(
        self,
        *,
        batch_size: int,
        num_inference_steps: int,
        generator: Generators,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raise ValueError, in one sentence, if an argument that all pipelines share cannot be used."""
        check_scheduler(self.scheduler)
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; give a whole number of at least 1.")
        most = self.scheduler.config.num_train_timesteps
        if not isinstance(num_inference_steps, int) or not 1 <= num_inference_steps <= most:
            raise ValueError(
                f"num_inference_steps is {num_inference_steps!r}; give a whole number from 1 to {most}, the steps the "
                "model was trained with."
            )
        if self.scheduler.config.get("timestep_spacing") == "leading" and most // 2 < num_inference_steps < most:
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}; {type(self.scheduler).__name__} takes at most {most // 2} "
                f"steps or all {most}: in between its steps do not begin at pure noise."
            )
        for one in generator if isinstance(generator, list) else [generator]:
            if not isinstance(one, torch.Generator) and (one is not None or isinstance(generator, list)):
                raise ValueError(f"generator is {generator!r}; give a torch.Generator, or a list of one a sample.")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"{len(generator)} generators were given for a batch of {batch_size}; give one, or one a sample."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; allowed are {', '.join(OUTPUT_TYPES)}.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs names {', '.join(sorted(unknown))}; allowed are "
                f"{', '.join(self._callback_tensor_inputs)}."
            )

    def check_grid(self, size: Sequence[int], divisor: int) -> None:
        """Raise ValueError unless a grid is three whole numbers (x, y, z) that ``divisor`` divides."""
        if not isinstance(size, Sequence) or len(size) != 3 or not all(isinstance(count, Integral) for count in size):
            raise ValueError(f"size is {size!r}; give three whole numbers (x, y, z).")
        if any(count % divisor or count < 1 for count in size):
            below = tuple(max(count // divisor, 1) * divisor for count in size)
            above = tuple(max(-(-count // divisor), 1) * divisor for count in size)
            grids = f"grids are {below} and {above}" if below != above else f"grid is {above}"
            raise ValueError(
                f"The grid is {tuple(size)}, but every size must be divisible by {divisor} for this model; the nearest "
                f"valid {grids}."
            )

    def prepare_latents(
        self, shape: tuple[int, ...], generator: Generators, latents: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Initial noise in float32, scaled as the scheduler wants it; given latents are standard normal noise too.

        Raises:
            ValueError: If given latents are no tensor of this shape, or not finite.
        """
        device = self._execution_device
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif not isinstance(latents, torch.Tensor):
            raise ValueError(f"latents are a {type(latents).__name__}; give a tensor of shape {shape}.")
        elif tuple(latents.shape) != shape or not latents.isfinite().all():
            raise ValueError(
                f"latents have the shape {tuple(latents.shape)}; this call needs {shape}, and numbers that are finite."
            )
        return latents.to(device, torch.float32) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def iterate_timesteps(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Go through the scheduler's timesteps under the progress bar."""
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for index, timestep in enumerate(timesteps):
                yield index, timestep
                progress_bar.update()

    def scheduler_input(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Scale the latents as sigma schedulers want the network's input; flow matching has no such step."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        return latents if scale is None else scale(latents, timestep)

    def step_arguments(self, generator: Generators) -> dict[str, Any]:
        """Keyword arguments that this scheduler's ``step`` takes beyond the three common ones."""
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        return {"generator": generator} if takes_generator else {}

    def provenance(
        self,
        batch_size: int,
        generator: Generators,
        *,
        steps: int,
        started: float,
        conditions: Sequence[Any] | None = None,
    ) -> list[dict[str, Any]]:
        """One record a volume of how this call made it; ``conditions`` holds one entry a volume."""
        scheduler = {key: value for key, value in self.scheduler.config.items() if not key.startswith("_")}
        record = {
            "voxdiff_version": voxdiff.__version__,
            "torch_version": torch.__version__,
            "diffusers_version": diffusers.__version__,
            "pipeline": type(self).__name__,
            **(self._loaded_from or {"model": None, "revision": None, "weights_sha256": None}),
            "scheduler": {"class": type(self.scheduler).__name__, **_plain(scheduler)},
            "num_inference_steps": steps,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self._execution_device),
            "batch_size": batch_size,
            "seconds": round(time.perf_counter() - started, 3),
            "peak_memory_mb": round(peak_memory_mb(self._execution_device), 1),
        }
        seeds, conditions = seeds_of(generator, batch_size), conditions or [None] * batch_size
        return [{**record, "seed": seed, "conditions": given} for seed, given in zip(seeds, conditions, strict=True)]


def _hash_weights(folder: str | Path, variant: str | None, replaced: Container[str]) -> dict[str, str]:
    """SHA-256, as ``sha256sum`` prints it, of every weight file that was read.

    A component that the caller gave is not read; of the others, the variant is, where there is one.
    """
    read: list[Path] = []
    for component in sorted({file.parent for file in Path(folder).rglob("*.safetensors")}):
        files = [] if component.name in replaced else sorted(component.glob("*.safetensors"))
        of_variant = [file for file in files if variant and f".{variant}" in file.name]
        read += of_variant or [file for file in files if file.name.count(".") == 1]
    return {file.relative_to(folder).as_posix(): _sha256(file) for file in read}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """What JSON can hold; infinities (a scheduler's open bounds) become strings."""
    plain = {key: value for key, value in config.items() if isinstance(value, (str, int, float, bool, type(None)))}
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in plain.items()
    }
