"""Whether an autoencoder of slices is fit for informed slices: the 3D autoencoders' report, on images and on masks.

Both pass through the same autoencoder. The images' report lies in the folder itself, the masks' in its folder ``masks``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from diffusers import AutoencoderKL

from voxdiff.models.autoencoder_3d import Autoencoder3D
from voxdiff.pipelines.slice_codec import decode_slices, encode_slices, slice_compression
from voxdiff.training.slice_sources import SliceSource
from voxdiff.training.slice_volumes import SliceVolumeColumn, SliceVolumes
from voxdiff.workflows.autoencoder_report import (
    check_autoencoder,
    read_autoencoder_report,
    require_sound,
    save_reconstructions,
    write_autoencoder_report,
)

_FOLDERS = {"image": ".", "mask": "masks"}
_REPORTED_VOLUMES = 8


def require_sound_autoencoder(
    vae: AutoencoderKL, source: SliceSource | None, folder: Path, *, ignore: bool = False
) -> None:
    """Measure an autoencoder on some volumes of a source, or read what was measured, and print it.

    Args:
        vae: The autoencoder.
        source: Volumes with masks; None reads the report in the folder.
        folder: An existing folder for the report.
        ignore: Go on although the autoencoder is broken.

    Raises:
        FileNotFoundError: If there is neither a source nor a report.
        ValueError: If the autoencoder is not fit for diffusion.
    """
    if source is not None:
        places = range(0, len(source), -(-len(source) // _REPORTED_VOLUMES))
        findings = write_slice_autoencoder_report(vae, SliceVolumes(source, places), folder)
    elif ignore:
        return
    else:
        findings = read_slice_autoencoder_report(folder)
    require_sound(check_slice_autoencoder(findings), describe_report(findings), folder, ignore=ignore)


def write_slice_autoencoder_report(
    vae: AutoencoderKL, volumes: SliceVolumes, folder: str | Path
) -> dict[str, dict[str, Any]]:
    """Measure an autoencoder on volumes and masks and write a report with a picture of each.

    Args:
        vae: The autoencoder; its configuration and weights are left as they are.
        volumes: What it is measured on.
        folder: An existing folder.

    Returns:
        The reports of images and masks, see :func:`voxdiff.workflows.autoencoder_report.measure_autoencoder`; the blurred
        floor is blurred within the slices, and latents count before the scaling factor.

    Raises:
        ValueError: If there is no volume, or the slices do not fit the autoencoder.
    """
    findings = {}
    for name, subfolder in _FOLDERS.items():
        place = Path(folder) / subfolder
        place.mkdir(exist_ok=True)
        findings[name] = write_autoencoder_report(_as_autoencoder_3d(vae), SliceVolumeColumn(volumes, name), place)
    return findings


def read_slice_autoencoder_report(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The reports that :func:`write_slice_autoencoder_report` left in a folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    return {name: read_autoencoder_report(Path(folder) / subfolder) for name, subfolder in _FOLDERS.items()}


def check_slice_autoencoder(findings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is broken, a sentence each; empty if diffusion can be trained on these latents.

    Args:
        findings: From :func:`write_slice_autoencoder_report`.
    """
    return [f"On {name}s: {problem}" for name, report in findings.items() for problem in check_autoencoder(report)]


def describe_report(findings: Mapping[str, Mapping[str, Any]]) -> str:
    """The scores of images and masks in one phrase."""
    scores = (f"{name}s PSNR {found['psnr']:.2f} dB, SSIM {found['ssim']:.3f}" for name, found in findings.items())
    return f"{'; '.join(scores)} on {findings['image']['volumes']} volumes"


def save_slice_reconstructions(
    vae: AutoencoderKL, volumes: Sequence[torch.Tensor], folder: str | Path, name: str
) -> Path:
    """Write a picture of volumes ``(1, x, y, z)`` beside their reconstructions, a row a volume."""
    return save_reconstructions(_as_autoencoder_3d(vae), volumes, folder, name)


def _as_autoencoder_3d(vae: AutoencoderKL) -> Autoencoder3D:
    return cast(Autoencoder3D, _WholeVolumes(vae))


class _WholeVolumes:
    """What the report asks of a 3D autoencoder, slice by slice and without the scaling factor."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae
        edge = slice_compression(vae)
        self.compression = (edge, edge, 1)

    @property
    def device(self) -> torch.device:
        return self.vae.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.dtype

    @property
    def training(self) -> bool:
        return self.vae.training

    def train(self, mode: bool = True) -> None:
        self.vae.train(mode)

    def eval(self) -> None:
        self.vae.eval()

    def encode(self, volumes: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(latents=encode_slices(self.vae, volumes) / self.vae.config["scaling_factor"])

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=decode_slices(self.vae, latents * self.vae.config["scaling_factor"]))
