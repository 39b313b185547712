"""The protocol of a report: everything that must be equal before two reports' numbers may stand in one table."""

import hashlib
import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass
from typing import Any

from voxdiff import __version__

PROTOCOL_VERSION = 1
"""Raised whenever a metric's value changes for the same volumes."""

_PACKAGES = ("torch", "numpy", "scipy", "monai", "scikit-learn", "nibabel", "transformers")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What was measured, on what, and how; plain values only.

    Attributes:
        preparation: configuration of the `VolumeProcessor` (orientation, grid, window or normalisation).
        grid: voxels of the prepared volumes along x, y, z.
        spacing_mm: their size.
        num_real: real volumes.
        num_synthetic: synthetic volumes.
        num_train: the generator's training volumes, None where they were not given.
        real_sha256: of the prepared real volumes: the same reals, whatever their names.
        train_sha256: of the prepared training volumes.
        masks_sha256: of the masks.
        labels_sha256: of the label maps of the real volumes.
        extractors: settings of each feature extractor, the SHA-256 of its weights among them.
        slices_per_plane: of the 2D extractors, evenly spaced over the middle three quarters of each axis;
            None where there is none.
        ms_ssim: scales, window and number of pairs.
        blur_sigma: of the blurred anchor, in voxels.
        sections: what was measured.
        options: further settings of the sections.
        seed: of every random choice.
        version: of this protocol.
    """

    preparation: dict[str, Any]
    grid: list[int]
    spacing_mm: list[float]
    num_real: int
    num_synthetic: int
    num_train: int | None
    real_sha256: str
    train_sha256: str | None
    masks_sha256: str | None
    labels_sha256: str | None
    extractors: list[dict[str, Any]]
    slices_per_plane: int | None
    ms_ssim: dict[str, Any]
    blur_sigma: float
    sections: list[str]
    options: dict[str, Any]
    seed: int
    version: int = PROTOCOL_VERSION

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def protocol_hash(protocol: dict[str, Any]) -> str:
    """First 16 digits of the SHA-256 of a protocol's canonical JSON."""
    text = json.dumps(protocol, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def protocol_differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What differs between two protocols, one sentence part a setting."""
    found = []
    for name in sorted({*first, *second}):
        if first.get(name) != second.get(name):
            found.append(f"{name} is {_short(first.get(name))} and {_short(second.get(name))}")
    return found


def package_versions() -> dict[str, str]:
    """Versions of what computed the numbers; recorded beside the protocol, not in its hash."""
    versions = {"voxdiff": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
