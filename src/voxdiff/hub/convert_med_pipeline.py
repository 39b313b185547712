"""The two official checkpoints of 3D MedDiffusion, autoencoder and BiFlowNet, into one pipeline folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from voxdiff import __version__
from voxdiff.hub.card import LIMITS
from voxdiff.hub.checkpoints_packed import read_packed_checkpoint
from voxdiff.hub.convert_med_autoencoder import MED_AUTOENCODER
from voxdiff.hub.convert_med_biflownet import MED_BIFLOWNET, read_checkpoint_file
from voxdiff.hub.new_folder import file_sha256, new_folder, require_free, write_pipeline_file
from voxdiff.schedulers import make_scheduler
from voxdiff.volumes import VolumeProcessor

REPOSITORY = "MMorss/3D-MedDiffusion"
PAPER = "2412.13059"
NUM_PUBLISHED_CLASSES = 7


def convert_med_checkpoints(
    autoencoder_path: str | Path,
    biflownet_path: str | Path,
    out_dir: str | Path,
    *,
    scheduler: str = "med-dpm++",
    autoencoder_overrides: Mapping[str, Any] | None = None,
    biflownet_overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Turns the official checkpoints into a folder of :class:`voxdiff.PatchVolumeLDMPipeline`.

    A network of the seven published classes gets their table of grids and spacings; any other one has no grid of its
    own, and a call names its size.

    Args:
        autoencoder_path: ``PatchVolume_8x_s2.ckpt`` or ``PatchVolume_4x_s2.ckpt``, or a bare state dict.
        biflownet_path: ``BiFlowNet_0453500.pt`` (8x) or ``BiFlowNet_4x.pt``, of which the averaged weights are used, or
            a bare state dict.
        out_dir: The folder to write; it must not exist, or be empty.
        scheduler: A preset of `voxdiff.schedulers`: ``"med-dpm++"`` (few steps) or ``"med-ddpm"`` (as published).
        autoencoder_overrides: Configuration that no tensor tells, where it is not the published one, such as
            ``norm_num_groups`` and ``patch_size``.
        biflownet_overrides: The same of the BiFlowNet, such as ``norm_num_groups`` and ``num_dit_heads``.

    Returns:
        `out_dir`.

    Raises:
        FileExistsError: `out_dir` is a file or has something in it.
        FileNotFoundError: There is no such checkpoint.
        OSError: The folder could not be written.
        ValueError: A checkpoint is unreadable or of another network, or the two do not belong together.
    """
    # diffusers' pipelines are slow to import
    from voxdiff.pipelines.patch_volume_classes import published_classes
    from voxdiff.pipelines.pipeline_patch_volume_ldm import PatchVolumeLDMPipeline

    out_dir, paths = Path(out_dir), [Path(autoencoder_path), Path(biflownet_path)]
    require_free(out_dir)
    states = read_packed_checkpoint(paths[0], "state_dict"), read_checkpoint_file(paths[1])
    vae: Any = MED_AUTOENCODER.build("med-autoencoder", states[0], dict(autoencoder_overrides or {}))
    unet: Any = MED_BIFLOWNET.build("med-biflownet", states[1], dict(biflownet_overrides or {}))
    _require_same_factor(vae, unet)
    has_published_classes = unet.config.num_class_embeds == NUM_PUBLISHED_CLASSES
    pipeline = PatchVolumeLDMPipeline(
        vae,
        unet,
        make_scheduler(scheduler),
        processor=VolumeProcessor(intensity="minmax").to_dict(),
        classes=published_classes() if has_published_classes else None,
    )
    with new_folder(out_dir) as folder:
        pipeline.save_pretrained(folder)
        write_pipeline_file(folder, type(pipeline).__name__)
        (folder / "README.md").write_text(_card(paths, has_published_classes), encoding="utf-8")
    return out_dir


def _require_same_factor(vae: Any, unet: Any) -> None:
    """The published networks: tokens of 1 latent voxel at 8x, of 2 at 4x."""
    token_size = {8: 1, 4: 2}.get(vae.compression)
    if unet.config.token_size != token_size:
        raise ValueError(
            f"The autoencoder compresses {vae.compression} times and the BiFlowNet has tokens of {unet.config.token_size} "
            "latent voxels; give the checkpoints of one model: 8 times with tokens of 1, or 4 times with tokens of 2."
        )


def _card(paths: list[Path], has_published_classes: bool) -> str:
    data = ModelCardData(
        license="unknown",
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["voxdiff", "medical", "3d", "image-synthesis", f"arxiv:{PAPER}"],
    )
    hashes = "\n".join(f"- SHA-256 of `{path.name}`: `{file_sha256(path)}`" for path in paths)
    call = '"CTHeadNeck", ' if has_published_classes else "size=(256, 256, 256), "
    return f"""---
{data.to_yaml()}
---

# 3D MedDiffusion

Weights converted with voxdiff {__version__}:
`voxdiff convert med {paths[1].name} OUT --autoencoder {paths[0].name}`. No value was changed.

{hashes}
- Volumes were scaled one by one to their own minimum and maximum: values come back in [0, 1], not in HU
- Paper: [arXiv:{PAPER}](https://arxiv.org/abs/{PAPER})

## Use

```python
import voxdiff

pipe = voxdiff.PatchVolumeLDMPipeline.from_pretrained("path/to/this/folder")
pipe.vae.enable_slab_decoding(max_memory_gb=8)
image = pipe({call}num_inference_steps=50).volumes[0]
```

Plain diffusers loads it too, with `custom_pipeline="pipeline", trust_remote_code=True` (voxdiff must be installed).

## Licence and source

The authors' code states no licence, nor does this folder: ask them (https://huggingface.co/{REPOSITORY}) before you share
it. The training data have terms of their own.

{LIMITS}"""
