"""Random brains: two real anatomies, deformed by an affine map and a random diffeomorphism.

The templates are the T1-weighted MNI152 average and the Colin27 individual, turned into fractions of cerebrospinal
fluid, grey and white matter (`anatomies/NOTICE.md` states source and terms).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from voxdiff.data.deformation import (
    average_down,
    exponentiate,
    resize_field,
    sample_at,
    voxel_centres,
)
from voxdiff.data.random_fields import RandomStream
from voxdiff.volumes import load_volume

BRAIN_FOV_MM = 208.0
CSF, GM, WM = 0, 1, 2

# T1 intensities of pure CSF, grey and white matter in each embedded template.
_TEMPLATE_FILES = {
    "mni152": ("t1_mni152_128.nii.gz", (64.0, 163.0, 219.0)),
    "colin27": ("t1_colin27_128.nii.gz", (36.0, 84.0, 109.0)),
}
BRAIN_TEMPLATES = tuple(_TEMPLATE_FILES)

_AFFINE_STRENGTH = 0.3
_DEFORMATION_STRENGTH = 0.8
_VELOCITY_GRID = 48
_VELOCITY_SCALES_MM = ((26.0, 3.4), (13.0, 1.9), (7.0, 1.0))  # correlation length, standard deviation
_VENTRICLE_RANGE_MM = (-2.5, 6.0)
_MIRRORED, _ONE_SIDED = 0.84, 0.54  # left and right brain share 70 % of the variance of the velocity

# Box around lateral and third ventricles in template space, mm from the grid centre, which is (0, -18, 8) in MNI space.
_VENTRICLE_BOX_MM = ((-34.0, 34.0), (-40.0, 58.0), (-11.0, 26.0))
# Fluid between cerebrum and brain stem that touches the third ventricle in the templates but is not part of it.
_CISTERN_BOX_MM = ((-15.0, 15.0), (-40.0, -11.0), (-11.0, 8.0))


def anatomy_path(name: str) -> Path:
    """Path of a file of the embedded anatomies."""
    return Path(__file__).with_name("anatomies") / name


@dataclass(frozen=True, eq=False)
class BrainTemplate:
    """One embedded brain: tissue fractions and where its ventricles are."""

    name: str
    fractions: torch.Tensor  # (3, 128, 128, 128): CSF, GM, WM; their sum is the brain's coverage of the voxel
    ventricles: torch.Tensor  # (1, 64, 64, 64): 1 around the ventricles, 0 elsewhere
    ventricle_velocity: torch.Tensor  # (3, 48, 48, 48): points towards the ventricles, at most 1 long

    @lru_cache(maxsize=8)  # noqa: B019  (two templates, held for the life of the process anyway)
    def fractions_for(self, size: int) -> torch.Tensor:
        """The fractions at a resolution that suits a rendering grid of `size`: 1.5 times finer, to avoid aliasing."""
        return average_down(self.fractions, 3 * size // 2)


@lru_cache(maxsize=2)
def load_brain_template(name: str) -> BrainTemplate:
    """Read an embedded T1 template and split it into tissues."""
    filename, intensities = _TEMPLATE_FILES[name]
    t1 = torch.from_numpy(load_volume(anatomy_path(filename)).get_fdata(dtype=np.float32))
    fractions = _trim_outer_rim(_tissue_fractions(t1, intensities))
    ventricles, velocity = _ventricle_maps(average_down(fractions, 64))
    return BrainTemplate(name, fractions, ventricles, velocity)


def _tissue_fractions(t1: torch.Tensor, intensities: tuple[float, float, float]) -> torch.Tensor:
    """Fractions (3, x, y, z) by piecewise-linear inversion of the intensity of a three-tissue mixture."""
    csf, gm, wm = intensities
    low = ((t1 - csf) / (gm - csf)).clamp(0, 1)
    high = ((t1 - gm) / (wm - gm)).clamp(0, 1)
    return torch.stack([1 - low, low * (1 - high), high]) * (t1 > 0)


def _box_mean(volume: torch.Tensor, width: int) -> torch.Tensor:
    """Mean of a volume (x, y, z) over cubes of `width` voxels."""
    return F.avg_pool3d(volume[None, None], width, 1, width // 2)[0, 0]


def _trim_outer_rim(fractions: torch.Tensor) -> torch.Tensor:
    """Drop the fluid at the outer face of the brain mask: mixed with background there, it is a bright rim on T2."""
    openness = 1 - _box_mean((fractions.sum(0) > 0).float(), 5)
    kept = fractions.clone()
    kept[CSF] *= (1 - (openness - 0.12) / 0.2).clamp(0, 1)
    return kept


def _ventricle_maps(fractions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Region around the ventricles (1, 64, 64, 64) and the field that points towards them (3, 48, 48, 48)."""
    deep = _box_mean(fractions.sum(0), 15) > 0.97
    density = _box_mean(fractions[CSF] * deep, 9)
    smooth = resize_field((density / density.max())[None], _VELOCITY_GRID)[0]
    velocity = torch.stack(torch.gradient(smooth, spacing=BRAIN_FOV_MM / _VELOCITY_GRID, dim=(0, 1, 2)))

    box = _in_box(_VENTRICLE_BOX_MM, fractions.shape[-1]) & ~_in_box(_CISTERN_BOX_MM, fractions.shape[-1])
    fluid = (fractions[CSF] > 0.5) & deep & box
    seeds = fluid & (density > 0.75 * density.max())
    region = _grow_within(seeds, fluid)
    region = F.max_pool3d(region[None, None].float(), 3, 1, 1)[0] * box
    return region, velocity / velocity.norm(dim=0).max()


def _in_box(box_mm: tuple[tuple[float, float], ...], size: int) -> torch.Tensor:
    """Voxels (size, size, size) whose centres lie in a box of the field of view."""
    inside = torch.ones((size,) * 3, dtype=torch.bool)
    for position, (low, high) in zip(voxel_centres(size, BRAIN_FOV_MM), box_mm, strict=True):
        inside &= (position > low) & (position < high)
    return inside


def _grow_within(seeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The parts of a mask that are connected to the seeds."""
    region = seeds
    while True:
        grown = (F.max_pool3d(region[None, None].float(), 3, 1, 1)[0, 0] > 0) & mask
        if torch.equal(grown, region):
            return region
        region = grown


@dataclass(frozen=True)
class BrainTissue:
    """A brain on a voxel grid."""

    fractions: torch.Tensor  # (3, size, size, size): CSF, GM, WM; sums to 1 inside the brain, 0 outside
    coverage: torch.Tensor  # (size, size, size): share of the voxel inside the brain
    ventricles: torch.Tensor  # (size, size, size): 1 around the ventricles

    @property
    def mask(self) -> torch.Tensor:
        """Voxels that are brain, by more than half."""
        return self.coverage > 0.5

    def labels(self) -> torch.Tensor:
        """Most frequent tissue of each voxel: uint8, 0 background, 1 CSF, 2 GM, 3 WM."""
        csf, gm, wm = self.fractions
        labels = torch.where(gm > csf, 2, 1).to(torch.uint8)
        labels[(wm > csf) & (wm > gm)] = 3
        return labels * self.mask

    def volumes_ml(self) -> dict[str, float]:
        """Volumes of the tissues, partial volumes included."""
        voxel_ml = (BRAIN_FOV_MM / self.coverage.shape[-1]) ** 3 / 1000
        inside = self.fractions * (self.coverage * self.mask)
        csf, gm, wm = (float(tissue.sum()) * voxel_ml for tissue in inside)
        ventricles = float((inside[CSF] * self.ventricles).sum()) * voxel_ml
        return {
            "brain_volume_ml": csf + gm + wm,
            "csf_ml": csf,
            "gm_ml": gm,
            "wm_ml": wm,
            "ventricle_volume_ml": ventricles,
        }


@dataclass(frozen=True)
class BrainAnatomy:
    """A patient's brain as a map from the patient to a template; independent of any voxel grid."""

    template: BrainTemplate
    matrix: torch.Tensor  # (3, 3)
    offset: torch.Tensor  # (3,) mm
    displacement: torch.Tensor  # (3, 48, 48, 48) mm
    boundary_shift: torch.Tensor  # (3, 48, 48, 48): log-odds given to each tissue, moves cortex and sulci
    boundary_sharpness: float
    ventricle_mm: float
    mirrored: bool

    def to_template(self, points: torch.Tensor) -> torch.Tensor:
        """Points of the patient (3, x, y, z) in mm to points of the template in mm."""
        affine = torch.einsum("ij,jxyz->ixyz", self.matrix, points) + self.offset[:, None, None, None]
        return affine + sample_at(self.displacement, affine, BRAIN_FOV_MM, padding="border")

    def on_grid(self, size: int, points: torch.Tensor | None = None) -> BrainTissue:
        """The tissues on a grid of the field of view, or at displaced `points` (3, size, size, size) in mm."""
        points = voxel_centres(size, BRAIN_FOV_MM) if points is None else points
        source = self.to_template(points)
        raw = sample_at(self.template.fractions_for(size), source, BRAIN_FOV_MM)
        ventricles = sample_at(self.template.ventricles, source, BRAIN_FOV_MM)[0]
        weighted = raw.clamp_min(1e-4) ** self.boundary_sharpness
        weighted = weighted * torch.exp(resize_field(self.boundary_shift, size)) * (raw > 2e-3)
        fractions = weighted / weighted.sum(0, keepdim=True).clamp_min(1e-4)
        return BrainTissue(fractions, raw.sum(0).clamp(0, 1), ventricles)


def draw_brain(seed: int, template: str | None = None) -> BrainAnatomy:
    """The brain of a seed. A forced template changes nothing else about the patient."""
    drawn = BRAIN_TEMPLATES[RandomStream(seed, "template").coin()]
    base = load_brain_template(template or drawn)
    ventricle_mm = RandomStream(seed, "ventricles").uniform(*_VENTRICLE_RANGE_MM)
    # The field maps patient to template: sampling nearer to the template's ventricle enlarges the patient's.
    velocity = _random_velocity(seed) + ventricle_mm * base.ventricle_velocity
    matrix, offset, mirrored = _random_affine(seed)
    boundary = RandomStream(seed, "boundary")
    level = torch.tensor([boundary.uniform(-0.6, 1.0), 0.0, boundary.uniform(-0.35, 0.35)])
    sharpness = boundary.uniform(0.9, 1.15)
    shift = 0.35 * boundary.field(3, _VELOCITY_GRID, 8.0, BRAIN_FOV_MM) + level[:, None, None, None]
    return BrainAnatomy(
        template=base,
        matrix=matrix,
        offset=offset,
        displacement=exponentiate(velocity, BRAIN_FOV_MM),
        boundary_shift=shift,
        boundary_sharpness=sharpness,
        ventricle_mm=ventricle_mm,
        mirrored=mirrored,
    )


def _random_velocity(seed: int) -> torch.Tensor:
    """Velocity field (3, 48, 48, 48) in mm, mostly symmetric between left and right."""
    stream = RandomStream(seed, "deformation")
    mirror = torch.tensor([-1.0, 1.0, 1.0])[:, None, None, None]
    total = torch.zeros(3, *(_VELOCITY_GRID,) * 3)
    for sigma_mm, amplitude_mm in _VELOCITY_SCALES_MM:
        amplitude = _DEFORMATION_STRENGTH * amplitude_mm * stream.uniform(0.6, 1.3)
        field = stream.field(3, _VELOCITY_GRID, sigma_mm, BRAIN_FOV_MM)
        reflected = field.flip(1) * mirror
        mixed = _MIRRORED * (field + reflected) + _ONE_SIDED * (field - reflected)
        total += amplitude / math.sqrt(2) * mixed
    return total


def _random_affine(seed: int) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Rotation, scaling, shear and (half of the time) a left-right mirror; offset in mm."""
    stream = RandomStream(seed, "affine")
    strength = _AFFINE_STRENGTH
    rotation = rotation_matrix(*(strength * stream.uniform(-0.09, 0.09) for _ in range(3)))
    scale = torch.tensor([1 + strength * stream.uniform(-0.07, 0.07) for _ in range(3)])
    shear = torch.tensor([[strength * stream.uniform(-0.02, 0.02) for _ in range(3)] for _ in range(3)])
    offset = torch.tensor([strength * stream.uniform(-3, 3) for _ in range(3)])
    mirrored = stream.coin()
    mirror = torch.diag(torch.tensor([-1.0 if mirrored else 1.0, 1.0, 1.0]))
    return (rotation @ torch.diag(1 / scale) + shear) @ mirror, offset, mirrored


def rotation_matrix(about_x: float, about_y: float, about_z: float) -> torch.Tensor:
    """Rotation about x, then y, then z, angles in radians: (3, 3)."""
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(angle), math.sin(angle)) for angle in (about_x, about_y, about_z))
    x = torch.tensor([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = torch.tensor([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return z @ y @ x
