"""Random abdomens: one real labelled CT, deformed, with varied organ densities, contrast medium and noise.

The source is the abdomen and pelvis example of TotalSegmentator (Apache-2.0, `anatomies/NOTICE.md`). The table is
removed, the scan is laid in a cube 384 mm wide, and every subject is scanned over the same 312 mm; beyond them, and
outside the body, is air (-1000 HU).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from voxdiff.data.anatomy import anatomy_path, rotation_matrix
from voxdiff.data.deformation import average_down, exponentiate, sample_at, voxel_centres
from voxdiff.data.random_fields import RandomStream
from voxdiff.volumes import load_volume

CT_FOV_MM = 384.0
CT_RANGE_HU = (-1000, 2500)
ORGANS = ("liver", "spleen", "kidney", "lung", "bone", "vessel", "muscle", "bowel", "other")
CT_TEMPLATE = "totalsegmentator_abdomen"

_AIR_HU = -1000.0
_SCAN_LENGTH_MM = 312.0
_NATIVE_GRID = 128  # 3 mm, as the source
_VELOCITY_GRID = 48
_VELOCITY_SCALES_MM = ((55.0, 5.5), (26.0, 3.0))

# Label ids of TotalSegmentator's "total" task, first and last of each run.
_ORGAN_IDS: dict[str, tuple[tuple[int, int], ...]] = {
    "liver": ((5, 5),),
    "spleen": ((1, 1),),
    "kidney": ((2, 3), (23, 24)),
    "lung": ((10, 14),),
    "bone": ((25, 50), (69, 78), (91, 116)),
    "vessel": ((51, 68),),
    "muscle": ((80, 89),),
    "bowel": ((6, 6), (15, 15), (18, 20)),
    "other": ((4, 4), (7, 9), (16, 17), (21, 22), (79, 79), (90, 90), (117, 117)),
}


@dataclass(frozen=True, eq=False)
class CTTemplate:
    """The embedded scan in its cube at 3 mm."""

    hounsfield: torch.Tensor  # (1, 128, 128, 128) HU
    organs: torch.Tensor  # (1, 128, 128, 128) float, index into ORGANS plus 1; 0 is unlabelled

    @lru_cache(maxsize=8)  # noqa: B019  (one template, held for the life of the process anyway)
    def hounsfield_for(self, size: int) -> torch.Tensor:
        """The scan at a resolution that suits a rendering grid of `size`."""
        return average_down(self.hounsfield, 3 * size // 2)

    @lru_cache(maxsize=8)  # noqa: B019
    def organ_shares_for(self, size: int) -> torch.Tensor:
        """Share of each organ in each voxel, at the same resolution: (len(ORGANS), m, m, m)."""
        shares = torch.cat([(self.organs == index + 1).float() for index in range(len(ORGANS))])
        return average_down(shares, 3 * size // 2)


@lru_cache(maxsize=1)
def load_ct_template() -> CTTemplate:
    """Read the embedded CT and its labels."""
    scan = load_volume(anatomy_path("ct_abdomen.nii.gz")).get_fdata(dtype=np.float32)
    labels = torch.from_numpy(load_volume(anatomy_path("ct_abdomen_labels.nii.gz")).get_fdata().astype(np.int64))
    hounsfield = torch.from_numpy(scan).clamp(*CT_RANGE_HU)
    hounsfield = torch.where(_body(hounsfield, labels > 0), hounsfield, torch.tensor(_AIR_HU))
    groups = torch.zeros(256)
    for index, organ in enumerate(ORGANS):
        for first, last in _ORGAN_IDS[organ]:
            groups[first : last + 1] = index + 1
    return CTTemplate(_in_cube(hounsfield, _AIR_HU), _in_cube(groups[labels], 0.0))


def _body(hounsfield: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """The patient without table and blankets: what a ray along x or y from outside does not reach through air."""
    solid = (hounsfield > -300).float()[None, None]
    eroded = -F.max_pool3d(-solid, 3, 1, 1)
    opened = F.max_pool3d(eroded, 5, 1, 2)[0, 0] > 0  # drops thin shells; one voxel more keeps the skin
    # Labelled voxels keep the thin chest wall closed.
    solid = opened | (F.max_pool3d(labelled[None, None].float(), 3, 1, 1)[0, 0] > 0)
    reached = torch.zeros_like(solid)
    for axis in (0, 1):
        reached |= solid.cumsum(axis) == 0
        reached |= solid.flip(axis).cumsum(axis).flip(axis) == 0
    return ~reached


def _in_cube(volume: torch.Tensor, background: float) -> torch.Tensor:
    """Centre a volume in the 128-cube: background at the sides, the end slices repeated above and below."""
    margins = [_NATIVE_GRID - length for length in volume.shape]
    x, y, z = ((margin // 2, margin - margin // 2) for margin in margins)
    volume = F.pad(volume[None, None], (0, 0, *y, *x), value=background)
    return F.pad(volume, (*z, 0, 0, 0, 0), mode="replicate")[0]


@dataclass(frozen=True)
class CTAnatomy:
    """A patient's abdomen as a map from the patient to the template; independent of any voxel grid."""

    template: CTTemplate
    matrix: torch.Tensor  # (3, 3)
    displacement: torch.Tensor  # (3, 48, 48, 48) mm
    organ_shift_hu: torch.Tensor  # (len(ORGANS),)
    bone_density: float
    noise_hu: float
    seed: int

    def to_template(self, points: torch.Tensor) -> torch.Tensor:
        """Points of the patient (3, x, y, z) in mm to points of the template in mm."""
        affine = torch.einsum("ij,jxyz->ixyz", self.matrix, points)
        return affine + sample_at(self.displacement, affine, CT_FOV_MM, padding="border")

    def scan(self, size: int) -> torch.Tensor:
        """CT in HU (size, size, size), whole numbers."""
        points = voxel_centres(size, CT_FOV_MM)
        source = self.to_template(points)
        image = sample_at(self.template.hounsfield_for(size) - _AIR_HU, source, CT_FOV_MM)[0] + _AIR_HU
        shares = sample_at(self.template.organ_shares_for(size), source, CT_FOV_MM)
        body = image > -900
        image = image + torch.einsum("k,kxyz->xyz", self.organ_shift_hu, shares) * (image > -200)
        image = image + shares[ORGANS.index("bone")] * image.clamp_min(0) * (self.bone_density - 1)
        image = image + self.noise_hu * body * RandomStream(self.seed, "ct", "noise", size).normals(size, size, size)
        image = torch.where(_in_scan(points), image, torch.tensor(_AIR_HU))
        return image.clamp(*CT_RANGE_HU).round()

    def organ_labels(self, size: int) -> torch.Tensor:
        """Organs (size, size, size) uint8: 0 unlabelled, otherwise the index into ORGANS plus 1."""
        points = voxel_centres(size, CT_FOV_MM)
        labels = sample_at(self.template.organs, self.to_template(points), CT_FOV_MM, mode="nearest")[0]
        return labels.to(torch.uint8) * _in_scan(points)

    def factors(self, size: int) -> dict[str, float]:
        """Organ volumes in ml measured on a grid, body volume in ml, densities."""
        voxel_ml = (CT_FOV_MM / size) ** 3 / 1000
        labels = self.organ_labels(size)
        points = voxel_centres(size, CT_FOV_MM)
        image = (
            sample_at(self.template.hounsfield_for(size) - _AIR_HU, self.to_template(points), CT_FOV_MM)[0] + _AIR_HU
        )
        volumes = {f"{organ}_ml": int((labels == index + 1).sum()) * voxel_ml for index, organ in enumerate(ORGANS)}
        shifts = {f"{organ}_shift_hu": float(self.organ_shift_hu[ORGANS.index(organ)]) for organ in ("liver", "vessel")}
        body_ml = int(((image > -900) & _in_scan(points)).sum()) * voxel_ml
        return {"body_volume_ml": body_ml, **volumes, **shifts, "bone_density": self.bone_density}


def _in_scan(points: torch.Tensor) -> torch.Tensor:
    return points[2].abs() < _SCAN_LENGTH_MM / 2


def draw_ct(seed: int) -> CTAnatomy:
    """The abdomen of a seed."""
    stream = RandomStream(seed, "ct", "deformation")
    velocity = torch.zeros(3, *(_VELOCITY_GRID,) * 3)
    for sigma_mm, amplitude_mm in _VELOCITY_SCALES_MM:
        amplitude = amplitude_mm * stream.uniform(0.6, 1.3)
        velocity += amplitude * stream.field(3, _VELOCITY_GRID, sigma_mm, CT_FOV_MM)
    velocity -= velocity.mean(dim=(1, 2, 3), keepdim=True)  # the body stays in the middle of the field of view
    affine = RandomStream(seed, "ct", "affine")
    scale = torch.tensor([affine.uniform(0.86, 0.98), affine.uniform(0.88, 1.1), affine.uniform(0.96, 1.1)])
    rotation = rotation_matrix(0.0, 0.0, affine.uniform(-0.06, 0.06))
    tissue = RandomStream(seed, "ct", "tissue")
    contrast_hu = tissue.uniform(-20, 130)  # iodine: most in vessels, then kidneys, spleen, liver
    uptake = {"vessel": 1.0, "kidney": 0.8, "spleen": 0.45, "liver": 0.3}
    shifts = [uptake.get(organ, 0.0) * contrast_hu + tissue.uniform(-12, 12) for organ in ORGANS]
    return CTAnatomy(
        template=load_ct_template(),
        matrix=rotation @ torch.diag(1 / scale),
        displacement=exponentiate(velocity, CT_FOV_MM),
        organ_shift_hu=torch.tensor(shifts),
        bone_density=tissue.uniform(0.8, 1.2),
        noise_hu=tissue.uniform(4, 14),
        seed=seed,
    )
