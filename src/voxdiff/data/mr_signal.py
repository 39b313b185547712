"""Simulated magnetic resonance contrasts: signal equations, tissue texture, coil bias and Rician noise."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from voxdiff.data.anatomy import BRAIN_FOV_MM, GM, WM
from voxdiff.data.deformation import resize_field
from voxdiff.data.random_fields import RandomStream

MR_CONTRASTS = ("t1", "t1gd", "t2", "flair")

# (T1 ms, T2 ms, proton density) at 1.5 T, of the order found in the literature; the order is that of the fractions.
_TISSUES = {
    "csf": (4000.0, 1200.0, 1.00),
    "gm": (950.0, 92.0, 0.81),
    "wm": (600.0, 76.0, 0.70),
    "oedema": (1300.0, 160.0, 0.86),
    "necrosis": (2300.0, 380.0, 0.93),
    "enhancing": (1150.0, 125.0, 0.86),
}
_TEXTURE_AMPLITUDE = (0.015, 0.025, 0.02)  # of the signal, in CSF, GM, WM

Relaxation = tuple[float, float, float]
Signal = Callable[[float, float, float], float]


@dataclass(frozen=True)
class TissueProperties:
    """What a patient's tissues bring to every scan of that patient."""

    relaxation: dict[str, Relaxation]
    enhanced_t1_ms: float
    fine_texture: torch.Tensor  # (3, 64, 64, 64)
    coarse_texture: torch.Tensor  # (3, 48, 48, 48)

    def texture(self, size: int) -> torch.Tensor:
        """Relative signal of each tissue (3, size, size, size) around 0."""
        amplitude = torch.tensor(_TEXTURE_AMPLITUDE)[:, None, None, None]
        return amplitude * (resize_field(self.fine_texture, size) + 0.8 * resize_field(self.coarse_texture, size))


def draw_tissue_properties(seed: int) -> TissueProperties:
    """The tissue properties of a seed, lesion tissues included."""
    stream = RandomStream(seed, "tissue")
    relaxation = {
        name: (
            t1 * (1 + 0.05 * stream.normal()),
            t2 * (1 + 0.05 * stream.normal()),
            density * (1 + 0.02 * stream.normal()),
        )
        for name, (t1, t2, density) in _TISSUES.items()
    }
    texture = RandomStream(seed, "texture")
    return TissueProperties(
        relaxation=relaxation,
        enhanced_t1_ms=stream.uniform(280, 420),
        fine_texture=texture.field(3, 64, 2.2, BRAIN_FOV_MM),
        coarse_texture=texture.field(3, 48, 7.0, BRAIN_FOV_MM),
    )


def spoiled_gradient_echo(repetition_ms: float, echo_ms: float, flip_rad: float) -> Signal:
    """Steady state of a spoiled gradient echo (Ernst)."""

    def signal(t1: float, t2: float, density: float) -> float:
        decay = math.exp(-repetition_ms / t1)
        steady = math.sin(flip_rad) * (1 - decay) / (1 - math.cos(flip_rad) * decay)
        return density * steady * math.exp(-echo_ms / t2)

    return signal


def magnetisation_prepared(inversion_ms: float, repetition_ms: float, echo_ms: float) -> Signal:
    """Inversion-recovery gradient echo (MPRAGE-like); fluid keeps a little signal instead of crossing zero."""

    def signal(t1: float, t2: float, density: float) -> float:
        recovered = 1 - 2 * math.exp(-inversion_ms / t1) / (1 + math.exp(-repetition_ms / t1))
        return max(0.02, density * recovered) * math.exp(-echo_ms / t2)

    return signal


def spin_echo(repetition_ms: float, echo_ms: float) -> Signal:
    """Fast spin echo."""

    def signal(t1: float, t2: float, density: float) -> float:
        return density * (1 - math.exp(-repetition_ms / t1)) * math.exp(-echo_ms / t2)

    return signal


def inversion_recovery(inversion_ms: float, repetition_ms: float, echo_ms: float) -> Signal:
    """Magnitude inversion recovery spin echo (FLAIR when the inversion nulls fluid)."""

    def signal(t1: float, t2: float, density: float) -> float:
        recovered = 1 - 2 * math.exp(-inversion_ms / t1) + math.exp(-repetition_ms / t1)
        return abs(density * recovered) * math.exp(-echo_ms / t2)

    return signal


@dataclass(frozen=True)
class Acquisition:
    """One contrast of one patient: the sequence, the coil and the noise level. Independent of the voxel grid."""

    seed: int
    contrast: str
    levels: torch.Tensor  # (6,) signal of each tissue
    bias: torch.Tensor  # (1, 16, 16, 16) log of the coil's sensitivity
    noise_level: float

    def brightest_lesion(self, mask: torch.Tensor) -> float:
        """Signal of the brightest lesion tissue, averaged over a brain mask, whether or not there is a lesion."""
        gain = torch.exp(resize_field(self.bias, mask.shape[-1])[0])
        return float(self.levels[3:].max() * gain[mask].mean())

    def scan(self, fractions: torch.Tensor, coverage: torch.Tensor, texture: torch.Tensor) -> torch.Tensor:
        """Magnitude image (size, size, size) in the sequence's own scale; 0 outside the brain.

        Args:
            fractions: (3 or 6, size, size, size): CSF, GM, WM and, with a lesion, oedema, necrosis, enhancing tumour.
            coverage: (size, size, size), share of the voxel inside the brain.
            texture: (3, size, size, size) of the healthy tissues.
        """
        size = coverage.shape[-1]
        image = torch.einsum("k,kxyz->xyz", self.levels[: len(fractions)], fractions)
        image = image * (1 + (texture * fractions[:3]).sum(0)) * coverage
        image = image * torch.exp(resize_field(self.bias, size)[0])
        # Noise belongs to the scan, not to the patient: one draw a voxel, at the resolution scanned.
        real, imaginary = self.noise_level * RandomStream(self.seed, self.contrast, "noise", size).normals(
            2, *image.shape
        )
        return torch.hypot(image + real, imaginary) * (coverage > 0.5)


def draw_acquisition(seed: int, contrast: str, tissue: TissueProperties) -> Acquisition:
    """The scan of one contrast of a seed."""
    stream = RandomStream(seed, contrast, "sequence")
    signal = _draw_sequence(stream, contrast, tissue)
    relaxation = dict(tissue.relaxation)
    if contrast == "t1gd":  # gadolinium shortens T1 and T2 where the blood-brain barrier leaks
        _, t2, density = relaxation["enhancing"]
        relaxation["enhancing"] = (tissue.enhanced_t1_ms, 0.7 * t2, density)
    levels = torch.tensor([signal(*relaxation[name]) for name in _TISSUES])
    reference = levels[GM] if contrast == "t2" else levels[WM]
    scanner = RandomStream(seed, contrast, "scanner")
    return Acquisition(
        seed=seed,
        contrast=contrast,
        levels=levels,
        bias=scanner.uniform(0.03, 0.12) * scanner.field(1, 16, 55.0, BRAIN_FOV_MM),
        noise_level=scanner.uniform(0.01, 0.035) * float(reference),
    )


def _draw_sequence(stream: RandomStream, contrast: str, tissue: TissueProperties) -> Signal:
    """A sequence of the contrast's family with plausible settings."""
    if contrast == "t1" and stream.coin():
        return magnetisation_prepared(stream.uniform(850, 1050), stream.uniform(2000, 2500), stream.uniform(3, 5))
    if contrast in ("t1", "t1gd"):
        flip_rad = math.radians(stream.uniform(22, 34))
        return spoiled_gradient_echo(stream.uniform(14, 24), stream.uniform(4, 9), flip_rad)
    if contrast == "t2":
        return spin_echo(stream.uniform(3500, 6500), stream.uniform(80, 110))
    repetition_ms, echo_ms = stream.uniform(8500, 10000), stream.uniform(95, 125)
    fluid_t1 = tissue.relaxation["csf"][0]
    nulling = -fluid_t1 * math.log((1 + math.exp(-repetition_ms / fluid_t1)) / 2)
    return inversion_recovery(nulling * stream.uniform(0.97, 1.01), repetition_ms, echo_ms)
