"""Volumes encoded once for latent diffusion: a folder of safetensors files with a manifest.

The manifest is written first and names every file; the files appear one by one, each whole. An encoding that was killed
is continued by starting it again. What is stored is the normalised mean of the encoder's distribution, never a sample
of it, which would put a floor of noise under the diffusion loss.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset

from voxdiff.models.autoencoder_3d import Autoencoder3D
from voxdiff.training.class_sources import VolumeSource
from voxdiff.volumes import VolumeProcessor, atomic_path
from voxdiff.workflows.latent_manifest import (
    encoder_identity,
    latents_file,
    read_manifest,
    require_encodable,
    require_files,
    write_manifest,
)


def cache_latents(
    vae: Autoencoder3D, sources: Sequence[VolumeSource], folder: str | Path, *, scalar_names: Sequence[str] = ()
) -> "LatentDataset":
    """Encode the volumes that are not in the folder yet: :func:`plan_latents` and :func:`encode_latents`.

    Args:
        vae: The autoencoder, on the device and in the precision to encode with.
        sources: The volumes by class and grid.
        folder: Where latents and manifest are kept.
        scalar_names: Scalar conditions in the order of their columns.

    Raises:
        ValueError: If the folder belongs to another autoencoder, or a volume or the autoencoder does not fit.
    """
    latents = plan_latents(vae, sources, folder, scalar_names=scalar_names)
    encode_latents(vae, sources, latents)
    return latents


def plan_latents(
    vae: Autoencoder3D, sources: Sequence[VolumeSource], folder: str | Path, *, scalar_names: Sequence[str] = ()
) -> "LatentDataset":
    """Write the manifest of latents that may not be there yet; see :func:`cache_latents` for the arguments.

    Other volumes' latents in the folder stay there and are not part of the result.
    """
    write_manifest(_plan(vae, sources, scalar_names), Path(folder))
    return LatentDataset(folder, vae)


def encode_latents(vae: Autoencoder3D, sources: Sequence[VolumeSource], latents: "LatentDataset") -> None:
    """Encode what is missing of the latents planned for these sources, one volume at a time."""
    volumes = [(source, index) for source in sources for index in range(len(source))]
    missing = [pair for pair in zip(volumes, latents.files, strict=True) if not pair[1].exists()]
    training = vae.training
    vae.eval()
    for (source, index), path in track(missing, "Encoding", console=Console(stderr=True), transient=True):
        _encode(vae, source.volume(index), source.keys[index], path)
    vae.train(training)


class LatentDataset(Dataset[dict[str, torch.Tensor]]):
    """The latents that a folder's manifest names.

    Items are dicts: ``latents`` float32 ``(channels, x, y, z)``, normalised; with classes ``class_labels`` (a whole
    number), with scalars ``scalars`` ``(number,)``, NaN where one is not known.

    Args:
        folder: Where :func:`cache_latents` left them.
        vae: The autoencoder they are used with.

    Attributes:
        classes: Class -> label; empty without classes.
        scalar_names: Scalar conditions in the order of their columns.
        processors: For each class and grid the class (None without classes) and its processor, a class's own grid first.
        buckets: Indices of the samples of each latent grid.
        files: Where the latents of each sample are, or will be.

    Raises:
        FileNotFoundError: If the folder has no manifest.
        ValueError: If the latents are of another autoencoder.
    """

    def __init__(self, folder: str | Path, vae: Autoencoder3D) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder, vae)
        self.classes: dict[str, int] = manifest["classes"]
        self.scalar_names: list[str] = manifest["scalar_names"]
        self.processors = [
            (part["class"], VolumeProcessor.from_dict(part["processor"])) for part in manifest["sources"]
        ]
        self._entries: list[dict[str, Any]] = []
        grids: dict[tuple[int, ...], list[int]] = {}
        for part in manifest["sources"]:
            indices = range(len(self._entries), len(self._entries) + len(part["volumes"]))
            grids.setdefault(tuple(part["latent_shape"]), []).extend(indices)
            self._entries += [{**entry, "class": part["class"]} for entry in part["volumes"]]
        self.buckets = list(grids.values())
        self.files = [self.folder / entry["file"] for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        entry = self._entries[index]
        item = {"latents": _load(self.files[index])}
        if self.classes:
            item["class_labels"] = torch.tensor(self.classes[entry["class"]])
        if self.scalar_names:
            item["scalars"] = self._scalars[index]
        return item

    def require_complete(self) -> None:
        """Raise FileNotFoundError if latents are missing, because their encoding was not finished."""
        require_files(self.folder, self.files)

    def scalar_conditions(self) -> dict[str, dict[str, float]]:
        """Place, mean and standard deviation of each scalar over the samples that have it, as BiFlowNet's config.

        Raises:
            ValueError: If a scalar does not vary.
        """
        conditions = {}
        for place, name in enumerate(self.scalar_names):
            values = self._scalars[:, place].double()
            values = values[~values.isnan()]
            std = values.std(correction=0).item()
            if not std > 1e-6 * values.abs().max().item():
                raise ValueError(f"The scalar {name} is {values[0].item():g} for all volumes; leave it out.")
            conditions[name] = {"place": place, "mean": values.mean().item(), "std": std}
        return conditions

    def scalar_ranges(self, class_name: str) -> dict[str, list[float]]:
        """Lowest and highest value of each scalar that volumes of a class have."""
        rows = self._scalars[[entry["class"] == class_name for entry in self._entries]]
        columns = {name: column[~column.isnan()] for name, column in zip(self.scalar_names, rows.T, strict=True)}
        return {name: [column.min().item(), column.max().item()] for name, column in columns.items() if len(column)}

    @property
    def has_absent_scalars(self) -> bool:
        """Whether some scalar is not known of some volume."""
        return bool(self._scalars.isnan().any())

    @cached_property
    def _scalars(self) -> torch.Tensor:
        rows = [[entry["scalars"].get(name, math.nan) for name in self.scalar_names] for entry in self._entries]
        return torch.tensor(rows, dtype=torch.float32).view(len(self._entries), len(self.scalar_names))


def _plan(vae: Autoencoder3D, sources: Sequence[VolumeSource], scalar_names: Sequence[str]) -> dict[str, Any]:
    """The manifest; a file is named by the encoder, the volume and how it is prepared."""
    identity = encoder_identity(vae)
    classes = dict.fromkeys(source.class_name for source in sources if source.class_name is not None)
    parts = []
    for source in sources:
        grid, rules = require_encodable(source.processor), source.processor.to_dict()
        volumes = [
            {"file": latents_file(identity["encoder_sha256"], rules, key), "volume": key, "scalars": dict(known)}
            for key, known in zip(source.keys, source.scalars, strict=True)
        ]
        part = {"class": source.class_name, "grid": list(grid), "processor": rules, "volumes": volumes}
        parts.append({**part, "latent_shape": list(vae.latent_shape(grid))})
    return {
        "autoencoder": identity,
        "classes": {name: label for label, name in enumerate(classes)},
        "scalar_names": list(scalar_names),
        "sources": parts,
    }


@torch.inference_mode()
def _encode(vae: Autoencoder3D, volume: torch.Tensor, key: str, path: Path) -> None:
    encoded = vae.encode(volume[None].to(vae.device, vae.dtype)).latents.float()
    latents = vae.normalize_latents(encoded)[0].cpu().contiguous()
    if not torch.isfinite(latents).all():
        raise ValueError(f"The autoencoder gives latents that are not finite for {key}; look at its report.")
    with atomic_path(path) as temporary:
        save_file({"latents": latents}, temporary)


def _load(path: Path) -> torch.Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("latents")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"The latents {path} cannot be read ({error}); delete the file and encode it again."
        ) from error
