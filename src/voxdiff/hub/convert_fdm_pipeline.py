"""A checkpoint of FDM, or of cDPM in its layout, into a pipeline folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from voxdiff import __version__
from voxdiff.hub.card import LIMITS
from voxdiff.hub.checkpoints_packed import read_packed_checkpoint, read_packed_settings
from voxdiff.hub.convert_fdm import FDM
from voxdiff.hub.new_folder import file_sha256, new_folder, require_free, write_pipeline_file
from voxdiff.schedulers import make_scheduler
from voxdiff.volumes import VolumeProcessor

REPOSITORY = "plai-group/flexible-video-diffusion-modeling"
PUBLISHED = {
    "num_heads": 4,
    "max_frames": 20,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "sigma_small": False,
}
"""What no tensor tells, where the checkpoint does not either."""
PAPERS = {"FDM": "2205.11495", "cDPM": "2212.08034"}


def convert_fdm_checkpoint(
    checkpoint_path: str | Path,
    out_dir: str | Path,
    *,
    processor: VolumeProcessor | None = None,
    scheduler: str = "fdm-dpm++",
    slice_axis: int = 2,
    max_slices: int | None = None,
    unet_overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Turns an official checkpoint into a folder of :class:`voxdiff.SliceConditionedPipeline`.

    No weights trained on medical volumes are public; the checkpoint is one of a user's own training with the official
    code, of which the averaged weights (``ema_0.9999_*.pt``) are the better ones.

    Args:
        checkpoint_path: A file as the official code writes it, with the entry ``state_dict``, or a bare state dict.
        out_dir: The folder to write; it must not exist, or be empty.
        processor: The volumes that the network was trained on; by default each volume's values from its lowest to its
            highest, in RAS order, without a grid, so that a call names its size.
        scheduler: A preset of `voxdiff.schedulers`: ``"fdm-dpm++"`` (few steps) or ``"fdm"`` (as published).
        slice_axis: Axis of the volume along which the slices lie.
        max_slices: Most slices that the network was trained on at a time; None is what the checkpoint says, else 20.
        unet_overrides: Configuration that no tensor tells, where neither the published one nor the checkpoint's own
            ``config`` is right, such as ``num_attention_heads``.

    Returns:
        `out_dir`.

    Raises:
        FileExistsError: `out_dir` is a file or has something in it.
        FileNotFoundError: There is no such checkpoint.
        OSError: The folder could not be written.
        ValueError: The checkpoint is unreadable, of another network or diffusion, or not of slices of one channel.
    """
    # diffusers' pipelines are slow to import
    from voxdiff.pipelines.pipeline_slice_conditioned import SliceConditionedPipeline

    out_dir, checkpoint_path = Path(out_dir), Path(checkpoint_path)
    require_free(out_dir)
    tensors = read_packed_checkpoint(checkpoint_path, "state_dict")
    settings = _read_settings(checkpoint_path)
    unet: Any = FDM.build("fdm", tensors, {"num_attention_heads": settings["num_heads"], **(unet_overrides or {})})
    slices = settings["max_frames"] if max_slices is None else max_slices
    pipeline = SliceConditionedPipeline(
        unet,
        make_scheduler(scheduler, **_diffusion(settings)),
        processor=(processor or VolumeProcessor(intensity="minmax")).to_dict(),
        slice_axis=slice_axis,
        stage_size=slices // 2,
        context_size=slices - slices // 2,
        max_slices=slices,
    )
    with new_folder(out_dir) as folder:
        pipeline.save_pretrained(folder)
        write_pipeline_file(folder, type(pipeline).__name__)
        (folder / "README.md").write_text(_card(checkpoint_path, processor), encoding="utf-8")
    return out_dir


def _read_settings(path: Path) -> dict[str, Any]:
    settings = {**PUBLISHED, **read_packed_settings(path, "config")}
    for name, usual in PUBLISHED.items():
        if type(settings[name]) is not type(usual) or (name == "max_frames" and settings[name] < 2):
            raise ValueError(
                f"The checkpoint's config has {name}={settings[name]!r}; give a value such as FDM's {usual!r}."
            )
    return settings


def _diffusion(settings: Mapping[str, Any]) -> dict[str, str]:
    """What a training's settings change of a scheduler preset."""
    schedules = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
    if settings["diffusion_steps"] != 1000 or settings["noise_schedule"] not in schedules:
        raise ValueError(
            f"The checkpoint was trained with {settings['diffusion_steps']} steps of the schedule "
            f"{settings['noise_schedule']!r}; only 1000 of {' or '.join(map(repr, schedules))} can be converted."
        )
    prediction = "sample" if settings["predict_xstart"] else "epsilon"
    return {
        "beta_schedule": schedules[settings["noise_schedule"]],
        "prediction_type": prediction,
        "variance_type": "fixed_small" if settings["sigma_small"] else "fixed_large",
    }


def _card(path: Path, processor: VolumeProcessor | None) -> str:
    data = ModelCardData(
        license="unknown",
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["voxdiff", "medical", "3d", "image-synthesis", *(f"arxiv:{paper}" for paper in PAPERS.values())],
    )
    papers = ", ".join(f"[{name}](https://arxiv.org/abs/{paper})" for name, paper in PAPERS.items())
    size = "" if processor and processor.size else "size=(128, 128, 128), "
    return f"""---
{data.to_yaml()}
---

# Slice-conditioned diffusion · {path.stem}

Weights converted from `{path.name}` with voxdiff {__version__} (`voxdiff convert fdm`). No value was changed.

- SHA-256 of the checkpoint: `{file_sha256(path)}`
- Training data, its grid and its licence: not told by the checkpoint
- Papers: {papers}; official code: https://github.com/{REPOSITORY}

## Use

```python
import voxdiff

pipe = voxdiff.SliceConditionedPipeline.from_pretrained("path/to/this/folder")
image = pipe({size}num_inference_steps=25).volumes[0]
```

Plain diffusers loads it too, with `custom_pipeline="pipeline", trust_remote_code=True` (voxdiff must be installed).

{LIMITS}"""
