"""The manifest of a folder of latents: which autoencoder made them, of what, and in which files.

It is written before the first file and names all of them, so that an encoding that was killed is continued by starting
it again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxdiff.volumes import VolumeProcessor, atomic_path

MANIFEST_FILE = "manifest.json"
_FORMAT = 1
_VALUE_RANGE = (-1.0, 1.0)


def encoder_hash(vae: Any) -> str:
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


def encoder_identity(vae: Any) -> dict[str, str]:
    """How a manifest names an autoencoder."""
    return {"class": type(vae).__name__, "encoder_sha256": encoder_hash(vae)}


def latents_file(*parts: Any) -> str:
    """Name of the file of one volume, by all that its latents depend on, as plain values."""
    return f"{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]}.safetensors"


def require_encodable(processor: VolumeProcessor) -> tuple[int, ...]:
    """The grid of a processor; ValueError if its volumes do not lie on one grid in [-1, 1]."""
    if tuple(processor.value_range) != _VALUE_RANGE or processor.size is None:
        raise ValueError(f"The autoencoder takes volumes in [-1, 1] on one grid, but the processor is {processor}.")
    return tuple(processor.size)


def write_manifest(manifest: Mapping[str, Any], folder: Path, *, kind: str | None = None) -> None:
    """Write a manifest with its ``autoencoder``; other volumes' latents in the folder stay there.

    Args:
        manifest: Plain values.
        folder: Created if it is missing.
        kind: What lies in the files; None for volumes by class.

    Raises:
        ValueError: If the folder belongs to another autoencoder, or to latents of another kind.
    """
    path = folder / MANIFEST_FILE
    content = {"format": _FORMAT, **({"kind": kind} if kind else {}), **manifest}
    if path.exists():
        present = _read(folder, kind)
        if present == content:
            return
        _require_autoencoder(present, content["autoencoder"], folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path, vae: Any, *, kind: str | None = None) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the latents are of another autoencoder or of another kind.
    """
    manifest = _read(folder, kind)
    _require_autoencoder(manifest, encoder_identity(vae), folder)
    return manifest


def require_files(folder: Path, files: Sequence[Path]) -> None:
    """Raise FileNotFoundError if latents are missing, because their encoding was not finished."""
    missing = [file for file in files if not file.exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of {len(files)} latents, the first is {missing[0].name}; finish with the "
            "command that began to encode them."
        )


def _read(folder: Path, kind: str | None) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST_FILE}; give a folder of encoded {kind or 'volumes'}.")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found = manifest.get("kind"), manifest.get("format")
    if found != (kind, _FORMAT):
        raise ValueError(
            f"{path} is of kind {found[0] or 'volumes'} and format {found[1]}, this reads {kind or 'volumes'} of format "
            f"{_FORMAT}; encode anew, into another folder."
        )
    return manifest


def _require_autoencoder(manifest: Mapping[str, Any], identity: Mapping[str, str], folder: Path) -> None:
    if manifest["autoencoder"] != identity:
        raise ValueError(
            f"The latents in {folder} were made by another autoencoder (other weights or another configuration); use that "
            "one, or another folder."
        )
