"""Volumes and masks encoded once for informed slices: a folder of safetensors files with a manifest.

The manifest is written first and names every file; the files appear one by one, each whole. An encoding that was killed
is continued by starting it again. What is stored is the scaled mean of the encoder's distribution. GEM-3D's code
draws a sample of it, which makes a mask another condition every time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from voxdiff.pipelines.mask_values import MaskEncoder
from voxdiff.pipelines.slice_codec import encode_slices, slice_compression
from voxdiff.training.slice_sources import SliceSource
from voxdiff.volumes import VolumeProcessor, atomic_path
from voxdiff.workflows.latent_manifest import (
    encoder_identity,
    latents_file,
    read_manifest,
    require_encodable,
    require_files,
    write_manifest,
)

_KIND = "slices"


def cache_slices(vae: AutoencoderKL, source: SliceSource, folder: str | Path) -> "SliceLatentDataset":
    """Encode the volumes and masks that are not in the folder yet: :func:`plan_slices` and :func:`encode_source`.

    Args:
        vae: The slice autoencoder, on the device and in the precision to encode with.
        source: The volumes with masks.
        folder: Where latents and manifest are kept.

    Raises:
        ValueError: If the folder belongs to another autoencoder, or a volume or the autoencoder does not fit.
    """
    latents = plan_slices(vae, source, folder)
    encode_source(vae, source, latents)
    return latents


def plan_slices(vae: AutoencoderKL, source: SliceSource, folder: str | Path) -> "SliceLatentDataset":
    """Write the manifest of latents that may not be there yet; see :func:`cache_slices` for the arguments.

    Other volumes' latents in the folder stay there and are not part of the result.
    """
    write_manifest(_plan(vae, source), Path(folder), kind=_KIND)
    return SliceLatentDataset(folder, vae)


def encode_source(vae: AutoencoderKL, source: SliceSource, latents: "SliceLatentDataset") -> None:
    """Encode what is missing of the latents planned for this source, one subject at a time."""
    encoder = MaskEncoder(source.mask_values)
    missing = [index for index, file in enumerate(latents.files) if not file.exists()]
    for index in track(missing, "Encoding", console=Console(stderr=True), transient=True):
        _encode(vae, encoder, source[index], latents.files[index], latents.subject_ids[index])


class SliceLatentDataset(Dataset[dict[str, torch.Tensor]]):
    """The latents that a folder's manifest names.

    Items are dicts: ``image`` and ``mask``, each float32 ``(channels, h, w, z)``, scaled; slices are not compressed
    along z.

    Args:
        folder: Where :func:`cache_slices` left them.
        vae: The slice autoencoder they are used with.

    Attributes:
        processor: How the volumes were brought to their grid, which is its size.
        mask_values: Label of the masks -> what the encoder saw.
        subject_ids: Whose volume each one is.
        files: Where the latents of each subject are, or will be.

    Raises:
        FileNotFoundError: If the folder has no manifest.
        ValueError: If the latents are of another autoencoder.
    """

    def __init__(self, folder: str | Path, vae: AutoencoderKL) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder, vae, kind=_KIND)
        self.processor = VolumeProcessor.from_dict(manifest["processor"])
        self.mask_values = {int(label): value for label, value in manifest["mask_values"].items()}
        self.subject_ids: list[str] = [entry["subject_id"] for entry in manifest["volumes"]]
        self.files = [self.folder / entry["file"] for entry in manifest["volumes"]]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        file = self.files[index]
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"The latents {file} cannot be read ({error}); delete the file and encode it again."
            ) from error

    def require_complete(self) -> None:
        """Raise FileNotFoundError if latents are missing, because their encoding was not finished."""
        require_files(self.folder, self.files)


def _plan(vae: AutoencoderKL, source: SliceSource) -> dict[str, Any]:
    """The manifest; a file is named by the encoder, the volume with its mask, and how both are prepared."""
    (x, y, _), compression = require_encodable(source.processor), slice_compression(vae)
    if x % compression or y % compression:
        raise ValueError(
            f"The slices have {x} x {y} pixels, the autoencoder makes them {compression} times smaller; bring the volumes "
            f"to a grid whose x and y are multiples of {compression}."
        )
    identity, rules = encoder_identity(vae), source.processor.to_dict()
    values = MaskEncoder(source.mask_values).to_dict()
    volumes = [
        {"file": latents_file(identity, rules, values, key), "subject_id": subject, "volume": key}
        for subject, key in zip(source.subject_ids, source.keys, strict=True)
    ]
    return {"autoencoder": identity, "processor": rules, "mask_values": values, "volumes": volumes}


@torch.inference_mode()
def _encode(
    vae: AutoencoderKL, encoder: MaskEncoder, item: Mapping[str, torch.Tensor], file: Path, subject: str
) -> None:
    mask = encoder.encode(item["mask"])[None]
    volumes = torch.stack([item["image"], mask]).to(vae.device, vae.dtype)
    image, mask = encode_slices(vae, volumes).float().cpu()
    if not (torch.isfinite(image).all() and torch.isfinite(mask).all()):
        raise ValueError(f"The autoencoder gives latents that are not finite for {subject}; use other weights.")
    with atomic_path(file) as temporary:
        save_file({"image": image.contiguous(), "mask": mask.contiguous()}, temporary)
