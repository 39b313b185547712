"""Volumes encoded once for latent diffusion: a folder of safetensors files with a manifest.

The manifest is written first and names every file; the files appear one by one, each whole. An encoding that was killed
is continued by starting it again. What is stored is the normalised mean of the encoder's distribution, never a sample
of it, which would put a floor of noise under the diffusion loss.
"""

import hashlib
import json
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

MANIFEST_FILE = "manifest.json"
_FORMAT = 1
_VALUE_RANGE = (-1.0, 1.0)


def encoder_hash(vae: Autoencoder3D) -> str:
    """SHA-256 of what latents depend on: the configuration, the encoder and its 1x1x1 convolution.

    Further training of the decoder leaves it as it is; another codebook range or other latent statistics, which the
    configuration holds, change it.
    """
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps([type(vae).__name__, config], sort_keys=True).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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
    manifest = _plan(vae, sources, scalar_names)
    _write_manifest(manifest, Path(folder))
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
        manifest = _read_manifest(self.folder)
        _require_same_encoder(manifest, vae, self.folder)
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
        missing = [file for file in self.files if not file.exists()]
        if missing:
            raise FileNotFoundError(
                f"{self.folder} lacks {len(missing)} of {len(self)} latents, the first is {missing[0].name}; finish with "
                "the command that began to encode them."
            )

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
    encoder = encoder_hash(vae)
    classes = dict.fromkeys(source.class_name for source in sources if source.class_name is not None)
    parts = []
    for source in sources:
        processor = source.processor
        if tuple(processor.value_range) != _VALUE_RANGE or processor.size is None:
            raise ValueError(f"The autoencoder takes volumes in [-1, 1] on one grid, but the processor is {processor}.")
        rules = processor.to_dict()
        names = [_hash(encoder, rules, key) for key in source.keys]
        volumes = [
            {"file": f"{name[:24]}.safetensors", "volume": key, "scalars": dict(known)}
            for name, key, known in zip(names, source.keys, source.scalars, strict=True)
        ]
        part = {"class": source.class_name, "grid": list(processor.size), "processor": rules, "volumes": volumes}
        parts.append({**part, "latent_shape": list(vae.latent_shape(processor.size))})
    return {
        "format": _FORMAT,
        "autoencoder": {"class": type(vae).__name__, "encoder_sha256": encoder},
        "classes": {name: label for label, name in enumerate(classes)},
        "scalar_names": list(scalar_names),
        "sources": parts,
    }


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write_manifest(manifest: dict[str, Any], folder: Path) -> None:
    path = folder / MANIFEST_FILE
    if path.exists():
        present = _read_manifest(folder)
        if present == manifest:
            return
        if present["autoencoder"] != manifest["autoencoder"]:
            raise ValueError(_of_another(folder))
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST_FILE}; give a folder of encoded latents.")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("format") != _FORMAT:
        raise ValueError(f"{path} has the format {manifest.get('format')}, this version reads {_FORMAT}; encode anew.")
    return manifest


def _require_same_encoder(manifest: dict[str, Any], vae: Autoencoder3D, folder: Path) -> None:
    if manifest["autoencoder"] != {"class": type(vae).__name__, "encoder_sha256": encoder_hash(vae)}:
        raise ValueError(_of_another(folder))


def _of_another(folder: Path) -> str:
    return (
        f"The latents in {folder} were made by another autoencoder (other weights or another configuration); use that "
        "one, or another folder."
    )


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
