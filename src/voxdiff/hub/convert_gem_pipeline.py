"""The official checkpoints of GEM-3D, volumetric model, slice generator and autoencoder, into one pipeline folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from voxdiff import __version__
from voxdiff.hub.card import LIMITS
from voxdiff.hub.checkpoints_gem import Weights, holds_vae
from voxdiff.hub.checkpoints_packed import read_packed_checkpoint
from voxdiff.hub.convert_gem import SLICE, STAGE2
from voxdiff.hub.convert_kl_f8 import KL_F8
from voxdiff.hub.new_folder import file_sha256, new_folder, require_free, write_pipeline_file
from voxdiff.schedulers import make_scheduler
from voxdiff.volumes import VolumeProcessor

REPOSITORY = "ltzhu/GEM-3D"
PAPER = "2403.12852"


@dataclass(frozen=True, kw_only=True)
class GemPreset:
    """What no tensor tells of a published model.

    Args:
        highest_label: Label that the autoencoder saw as 1; 0 was -1, linear between them.
        outside: Whether masks have nnU-Net's label -1 outside the head, by the same rule below -1.
        labels: What the labels mean.
        data: Training data.
    """

    highest_label: int
    outside: bool
    labels: str
    data: str


GEM_PRESETS = {
    "gem-brats": GemPreset(
        highest_label=3,
        outside=True,
        labels="-1 outside the head, 0 inside, 1 oedema, 2 non-enhancing tumour, 3 enhancing tumour: the order of MSD "
        "Task01; in BraTS 2023 the first two are the other way round, so exchange them there",
        data="MSD Task01 (brain tumours), FLAIR",
    ),
    "gem-abdomen": GemPreset(
        highest_label=4,
        outside=False,
        labels="0 elsewhere, 1 to 4 as in AbdomenCT-1K subtask 1",
        data="AbdomenCT-1K subtask 1",
    ),
}
"""Preset name -> how that model was trained."""


def convert_gem_checkpoints(
    stage2_path: str | Path,
    out_dir: str | Path,
    *,
    slice_path: str | Path | None = None,
    vae_path: str | Path | None = None,
    preset: str = "gem-brats",
    scheduler: str = "gem-ddim",
    slice_weights: Weights = "raw",
    unet_overrides: Mapping[str, Any] | None = None,
    slice_overrides: Mapping[str, Any] | None = None,
    vae_overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Turns the official checkpoints into a folder of :class:`voxdiff.InformedSlicePipeline`.

    Args:
        stage2_path: Checkpoint of the volumetric (second) stage, of which the raw weights are used, or its U-Net's bare
            state dict.
        out_dir: The folder to write; it must not exist, or be empty.
        slice_path: Checkpoint of the model that generates informed slices; without it, every call is given one.
        vae_path: Checkpoint of KL-f8, instead of the copy inside `stage2_path`.
        preset: A key of :data:`GEM_PRESETS`.
        scheduler: A preset of `voxdiff.schedulers`: ``"gem-ddim"`` (as published) or ``"gem-dpm++"`` (few steps).
        slice_weights: ``"raw"``, as the official scripts sample, or ``"ema"``, the averages of the slice model.
        unet_overrides: Configuration that no tensor tells, where it is not the published one, such as
            ``attention_head_dim``.
        slice_overrides: The same of the slice model.
        vae_overrides: The same of the autoencoder, such as ``scaling_factor``.

    Returns:
        `out_dir`.

    Raises:
        FileExistsError: `out_dir` is a file or has something in it.
        FileNotFoundError: There is no such checkpoint.
        OSError: The folder could not be written.
        ValueError: The preset is unknown, or a checkpoint is unreadable, of another network or without an autoencoder,
            or the networks do not belong together.
    """
    from voxdiff.pipelines.mask_values import MaskEncoder, linear_mask_values  # diffusers' pipelines are slow to import
    from voxdiff.pipelines.pipeline_informed_slice import InformedSlicePipeline

    out_dir, published = Path(out_dir), _find_preset(preset)
    require_free(out_dir)
    paths = [Path(path) for path in (stage2_path, slice_path, vae_path) if path is not None]
    vae, unet = _build_stage2(stage2_path, vae_path, dict(unet_overrides or {}), dict(vae_overrides or {}))
    slice_unet = _build_slice_model(slice_path, slice_weights, dict(slice_overrides or {}))
    values = linear_mask_values(published.highest_label, outside=published.outside)
    pipeline = InformedSlicePipeline(
        vae,
        unet,
        make_scheduler(scheduler),
        slice_unet=slice_unet,
        # Rows and columns of an official slice are the y and x of its file, which is taken to be stored in RAS order.
        processor=VolumeProcessor(orientation="ARS", intensity="minmax").to_dict(),
        mask_values=MaskEncoder(values).to_dict(),
        position_rule="official",
    )
    with new_folder(out_dir) as folder:
        pipeline.save_pretrained(folder)
        write_pipeline_file(folder, type(pipeline).__name__)
        (folder / "README.md").write_text(_card(preset, paths, slice_path is not None, scheduler), encoding="utf-8")
    return out_dir


def _find_preset(name: str) -> GemPreset:
    if name not in GEM_PRESETS:
        raise ValueError(f"The preset {name!r} is unknown; for 'gem' choose one of {', '.join(GEM_PRESETS)}.")
    return GEM_PRESETS[name]


def _build_stage2(
    path: str | Path, vae_path: str | Path | None, unet_overrides: dict[str, Any], vae_overrides: dict[str, Any]
) -> tuple[Any, Any]:
    """The autoencoder and the volumetric model."""
    stage2 = read_packed_checkpoint(path, "state_dict")
    if vae_path is None and not holds_vae(stage2):
        raise ValueError(
            f"{str(path)!r} has no autoencoder (first_stage_model.*) beside its U-Net; give the checkpoint of KL-f8 as well."
        )
    vae_tensors = stage2 if vae_path is None else read_packed_checkpoint(vae_path, "state_dict")
    return (
        KL_F8.build("kl-f8", vae_tensors, vae_overrides),
        STAGE2.build("gem3d-stage2", stage2, unet_overrides),
    )


def _build_slice_model(path: str | Path | None, weights: Weights, overrides: dict[str, Any]) -> Any:
    if path is None:
        if weights != "raw" or overrides:
            raise ValueError("slice_weights and slice_overrides are of no use without slice_path; leave them out.")
        return None
    return SLICE.build("gem3d-slice", read_packed_checkpoint(path, "state_dict"), {**overrides, "weights": weights})


def _card(preset: str, paths: list[Path], has_slice_model: bool, scheduler: str) -> str:
    data = ModelCardData(
        license="unknown",
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["voxdiff", "medical", "3d", "image-synthesis", f"arxiv:{PAPER}"],
    )
    published = GEM_PRESETS[preset]
    files = ", ".join(f"`{path.name}`" for path in paths)
    hashes = "\n".join(f"- SHA-256 of `{path.name}`: `{file_sha256(path)}`" for path in paths)
    steps = "num_inference_steps=200, eta=1.0" if scheduler == "gem-ddim" else "num_inference_steps=25"
    call = '"mask.nii.gz"' if has_slice_model else '"mask.nii.gz", informed_slice="other_subject.nii.gz"'
    return f"""---
{data.to_yaml()}
---

# GEM-3D · {preset}

Weights converted from {files} with voxdiff {__version__} (`voxdiff convert gem`). No value was changed.

{hashes}
- Training data: {published.data}
- Labels of the masks: {published.labels}. A mask with another label is refused
- In training, volumes were cropped to the head or the body and every slice was stretched to 512 x 512, which this folder
  does not do: prepare masks and informed slices so
- Intensities were scaled one volume at a time: values come back in [0, 1]
- Rows and columns of a slice were the second and the first axis of the training files; that these are stored in RAS order
  is an assumption
- Paper: [arXiv:{PAPER}](https://arxiv.org/abs/{PAPER})

## Use

```python
import voxdiff

pipe = voxdiff.InformedSlicePipeline.from_pretrained("path/to/this/folder")
image = pipe({call}, {steps}).volumes[0]
```

Plain diffusers loads it too, with `custom_pipeline="pipeline", trust_remote_code=True` (voxdiff must be installed).

## Licence and source

The authors' code is under GPL-3.0 and states no licence for the weights, nor does this folder: ask them
(https://huggingface.co/{REPOSITORY}) before you share it. The training data have terms of their own.

{LIMITS}"""
