"""Whether an autoencoder is fit for latent diffusion: its reconstructions, codebook and latents on some volumes."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from voxdiff.metrics.structural import ssim
from voxdiff.models.autoencoder_3d import Autoencoder3D
from voxdiff.models.autoencoder_patch_volume import AutoencoderPatchVolume
from voxdiff.volumes import atomic_path

REPORT_FILE = "autoencoder_report.json"
PICTURE_FILE = "autoencoder_report.png"

_DATA_RANGE = 2.0  # of volumes in [-1, 1]
_WINDOW = 11
_PICTURED = 4
_GAP = 2
_SMALLEST_MSE = 1e-12
_SMALLEST_STD = 1e-3
_SMALLEST_CODE_SHARE = 0.05


def write_autoencoder_report(vae: Autoencoder3D, volumes: Sequence[torch.Tensor], folder: str | Path) -> dict[str, Any]:
    """Measure an autoencoder and write ``autoencoder_report.json`` and ``.png`` into a folder.

    Args:
        vae: The autoencoder; its configuration and weights are left as they are.
        volumes: ``(channels, x, y, z)`` in [-1, 1], read twice; their grids may differ. Volumes that the autoencoder was
            trained on show it at its best.
        folder: An existing folder.

    Returns:
        The report, see :func:`measure_autoencoder`.

    Raises:
        ValueError: If there is no volume, or a grid does not fit the autoencoder.
    """
    report = measure_autoencoder(vae, volumes)
    with atomic_path(Path(folder) / REPORT_FILE) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    save_reconstructions(vae, [volumes[place] for place in range(min(_PICTURED, len(volumes)))], folder, PICTURE_FILE)
    return report


def read_autoencoder_report(folder: str | Path) -> dict[str, Any]:
    """The report that :func:`write_autoencoder_report` left in a folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = Path(folder) / REPORT_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; write it with write_autoencoder_report first.")
    return json.loads(path.read_text(encoding="utf-8"))


def check_autoencoder(report: Mapping[str, Any]) -> list[str]:
    """What is broken, a sentence each; empty if diffusion can be trained on these latents.

    Args:
        report: From :func:`measure_autoencoder`.
    """
    unfinite = [name for name, value in report.items() if isinstance(value, float) and not math.isfinite(value)]
    if unfinite:
        return [f"The autoencoder gives numbers that are not finite ({', '.join(unfinite)})."]
    problems = [
        f"Its PSNR of {report['psnr']:.2f} dB is not above the {report[f'{floor}_psnr']:.2f} dB of {name}."
        for floor, name in (
            ("mean_image", "the mean of the other volumes"),
            ("blurred", f"the volumes blurred to cells of {report['compression']} voxels"),
        )
        if report["psnr"] <= report[f"{floor}_psnr"]
    ]
    if report["latent_std"] < _SMALLEST_STD:
        problems.append(f"Its latents hardly vary: their standard deviation is {report['latent_std']:.2g}.")
    share = report.get("code_share", 1.0)
    if share < _SMALLEST_CODE_SHARE:
        problems.append(f"Its codebook has collapsed: {share:.1%} of the entries that could be used are.")
    return problems


def require_sound(problems: Sequence[str], scores: str, folder: Path, *, ignore: bool) -> None:
    """Print what was found; raise ValueError if something is broken, unless that is to be ignored.

    Args:
        problems: From :func:`check_autoencoder`.
        scores: What was measured, a phrase.
        folder: Where the report is.
        ignore: Go on in any case.
    """
    print(f"autoencoder: {scores}. {' '.join(problems)}".rstrip())
    if problems and not ignore:
        raise ValueError(
            f"The autoencoder is not fit for diffusion: {' '.join(problems)} See {folder / REPORT_FILE}; train it further, "
            "or pass --ignore_autoencoder_report."
        )


@torch.inference_mode()
def measure_autoencoder(vae: Autoencoder3D, volumes: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Reconstruct volumes one by one and measure reconstructions, latents and codes.

    Reconstructions are clamped to [-1, 1] first. Two floors stand beside the PSNR: the mean of the other volumes of its
    grid in place of a volume (where there is no other, its own mean value), and the volume reduced to the means of cells
    as large as a latent voxel. SSIM's window has 11 voxels a side, or what fits into the grid.

    Args:
        vae: The autoencoder.
        volumes: ``(channels, x, y, z)`` in [-1, 1].

    Returns:
        ``volumes`` (number), ``compression``; means over the volumes of ``psnr``, ``mean_image_psnr``, ``blurred_psnr``
        (dB, data range 2) and ``ssim``; of an autoencoder with patches also ``patch_psnr``, decoded patch by patch, which
        is all that the patch stage learns; ``latent_mean``, ``latent_std``, ``latent_min``, ``latent_max`` over all latent
        values before normalisation; with a codebook also ``code_share`` (entries in use, of as many as there are
        entries or latent voxels), ``codes_used`` and ``perplexity`` (exponential of the entropy of the codes). What a
        broken autoencoder makes of it is NaN.

    Raises:
        ValueError: If there is no volume, or a grid does not fit the autoencoder.
    """
    if not len(volumes):
        raise ValueError("There is no volume to measure the autoencoder on; give at least one.")
    floors = _MeanImages(volumes)
    scores: dict[str, list[float]] = defaultdict(list)
    latents, counts = _LatentStatistics(), _CodeCounts(vae)
    training = vae.training
    vae.eval()
    for place in range(len(volumes)):
        volume = volumes[place][None].to(vae.device, vae.dtype)
        encoded = vae.encode(volume).latents
        original, reconstruction = volume.float(), vae.decode(encoded).sample.float().clamp(-1, 1)
        scores["psnr"].append(_psnr(original, reconstruction))
        if isinstance(vae, AutoencoderPatchVolume) and vae.config["patch_size"]:
            patchwise = vae.decode_patches(encoded).sample.float().clamp(-1, 1)
            scores["patch_psnr"].append(_psnr(original, patchwise))
        scores["ssim"].append(_ssim(original, reconstruction))
        scores["mean_image_psnr"].append(_psnr(original, floors.without(original)))
        scores["blurred_psnr"].append(_psnr(original, _blurred(original, vae.compression)))
        latents.add(encoded)
        counts.add(encoded)
    vae.train(training)
    averages = {name: sum(values) / len(values) for name, values in scores.items()}
    return {
        "volumes": len(volumes),
        "compression": vae.compression,
        **averages,
        **latents.summary(),
        **counts.summary(latents.voxels),
    }


@torch.inference_mode()
def save_reconstructions(vae: Autoencoder3D, volumes: Sequence[torch.Tensor], folder: str | Path, name: str) -> Path:
    """Write a picture: a row a volume, the middle x-y, x-z and y-z slices, each beside its reconstruction.

    Args:
        vae: The autoencoder.
        volumes: ``(channels, x, y, z)`` in [-1, 1]; the first channel is shown.
        folder: Made if it does not exist.
        name: File name ending in ``.png``.
    """
    training = vae.training
    vae.eval()
    rows = []
    for volume in volumes:
        sample = volume[None].to(vae.device, vae.dtype)
        reconstruction = vae.decode(vae.encode(sample).latents).sample
        pairs = zip(_planes(sample), _planes(reconstruction), strict=True)
        rows.append(_beside([plane for pair in pairs for plane in pair]))
    vae.train(training)
    width = max(row.shape[1] for row in rows)
    picture = np.concatenate([np.pad(row, ((0, _GAP), (0, width - row.shape[1]))) for row in rows])
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
    return path


class _LatentStatistics:
    """Mean, standard deviation and range of all latent values, in float64 and one volume at a time."""

    def __init__(self) -> None:
        self.values = self.voxels = 0
        self.sum = self.squares = 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, latents: torch.Tensor) -> None:
        latents = latents.double()
        self.values += latents.numel()
        self.voxels += latents.numel() // latents.shape[1]
        self.sum += latents.sum().item()
        self.squares += latents.square().sum().item()
        self.low, self.high = min(self.low, latents.min().item()), max(self.high, latents.max().item())

    def summary(self) -> dict[str, float]:
        mean = self.sum / self.values
        variance = self.squares / self.values - mean**2
        std = math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan
        return {"latent_mean": mean, "latent_std": std, "latent_min": self.low, "latent_max": self.high}


class _CodeCounts:
    """How often each entry of the codebook is used; nothing for an autoencoder without one."""

    def __init__(self, vae: Autoencoder3D) -> None:
        self.vae = vae if isinstance(vae, AutoencoderPatchVolume) else None
        self.counts = torch.zeros(0 if self.vae is None else self.vae.quantize.num_embeddings, dtype=torch.float64)

    def add(self, latents: torch.Tensor) -> None:
        if self.vae is not None:
            codes = self.vae.quantize_latents(latents).flatten().cpu()
            self.counts += torch.bincount(codes, minlength=len(self.counts))

    def summary(self, voxels: int) -> dict[str, float]:
        if self.vae is None:
            return {}
        used = self.counts[self.counts > 0]
        frequencies = used / used.sum()
        return {
            "code_share": len(used) / min(len(self.counts), voxels),
            "codes_used": len(used),
            "perplexity": torch.exp(-(frequencies * frequencies.log()).sum()).item(),
        }


class _MeanImages:
    """The mean of the volumes of each grid but one."""

    def __init__(self, volumes: Sequence[torch.Tensor]) -> None:
        self.sums: dict[tuple[int, ...], torch.Tensor] = {}
        self.numbers: dict[tuple[int, ...], int] = defaultdict(int)
        for place in range(len(volumes)):
            volume = volumes[place].double()
            grid = tuple(volume.shape[1:])
            self.sums[grid] = self.sums[grid] + volume if grid in self.sums else volume
            self.numbers[grid] += 1

    def without(self, volume: torch.Tensor) -> torch.Tensor:
        grid = tuple(volume.shape[2:])
        others = self.numbers[grid] - 1
        if not others:
            return volume.mean().expand_as(volume)
        return (self.sums[grid].to(volume.device) - volume) / others


def _blurred(volume: torch.Tensor, cell: int) -> torch.Tensor:
    coarse = F.avg_pool3d(volume, cell)
    return F.interpolate(coarse, size=volume.shape[2:], mode="trilinear", align_corners=False)


def _psnr(original: torch.Tensor, other: torch.Tensor) -> float:
    mse = (original - other).double().square().mean().item()
    return 10 * math.log10(_DATA_RANGE**2 / max(mse, _SMALLEST_MSE)) if math.isfinite(mse) else math.nan


def _ssim(original: torch.Tensor, other: torch.Tensor) -> float:
    if not torch.isfinite(other).all():
        return math.nan
    window = min(_WINDOW, (min(original.shape[2:]) - 1) // 2 * 2 + 1)
    return ssim(original + 1, other + 1, data_range=_DATA_RANGE, kernel_size=window).item()


def _planes(volume: torch.Tensor) -> list[np.ndarray]:
    """Middle slices of the first channel as 8-bit images, the last two axes upright."""
    grey = ((volume[0, 0].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    x, y, z = (side // 2 for side in grey.shape)
    return [np.ascontiguousarray(plane.T[::-1]) for plane in (grey[:, :, z], grey[:, y], grey[x])]


def _beside(planes: list[np.ndarray]) -> np.ndarray:
    height = max(len(plane) for plane in planes)
    return np.concatenate([np.pad(plane, ((0, height - len(plane)), (0, _GAP))) for plane in planes], axis=1)
