"""Simulated brain tumours: mass effect, and a noisy level set with oedema, enhancing rim and necrotic core.

Labels are those of BraTS 2023: 1 necrotic core, 2 oedema, 3 enhancing tumour.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from voxdiff.data.anatomy import BRAIN_FOV_MM, CSF, WM, BrainAnatomy, BrainTissue
from voxdiff.data.deformation import resize_field, voxel_centres
from voxdiff.data.random_fields import RandomStream

_FIELD_GRID = 48
_EDGE_MM = 0.7
_NEGLIGIBLE = 1e-3
_BRATS_LABELS = torch.tensor([2, 1, 3], dtype=torch.uint8)  # of oedema, necrosis, enhancing


@dataclass(frozen=True)
class Lesion:
    """A tumour in patient space; independent of any voxel grid."""

    centre: torch.Tensor  # (3,) mm
    radius_mm: float
    push_mm: float
    shape: torch.Tensor  # (3, 3), makes the core an ellipsoid
    shell_mm: float
    oedema_mm: float
    boundary_noise: torch.Tensor  # (1, 48, 48, 48) mm, of the core's surface
    inner_noise: torch.Tensor  # (1, 48, 48, 48) of unit variance, of the other two surfaces

    def displaced_points(self, size: int) -> torch.Tensor:
        """Where the tissue now at each voxel was before the tumour pushed it: (3, size, size, size) in mm."""
        points = voxel_centres(size, BRAIN_FOV_MM)
        offset = points - self.centre[:, None, None, None]
        distance = offset.norm(dim=0) + 1e-3
        relative = distance / (self.radius_mm + 6)
        push = self.push_mm * relative * torch.exp(0.5 * (1 - relative**2))
        push = push * (1 - (relative / 3) ** 2).clamp_min(0)  # nothing moves beyond three radii
        return points - offset / distance * push

    def shares(self, tissue: BrainTissue) -> torch.Tensor:
        """Share of oedema, necrosis and enhancing tumour in each voxel: (3, size, size, size)."""
        size = tissue.coverage.shape[-1]
        offset = voxel_centres(size, BRAIN_FOV_MM) - self.centre[:, None, None, None]
        depth = torch.einsum("ij,jxyz->ixyz", self.shape, offset).norm(dim=0) - self.radius_mm
        depth = depth + resize_field(self.boundary_noise, size)[0]
        inner = resize_field(self.inner_noise, size)[0]
        white = F.avg_pool3d(tissue.fractions[WM][None, None], 3, 1, 1)[0, 0]
        not_fluid = (1 - tissue.fractions[CSF]).clamp(0, 1)

        core = _inside(depth)
        necrosis = _inside(depth + self.shell_mm * (1 + 0.6 * inner)) * core  # a rim of uneven width, broken in places
        reach = self.oedema_mm * (0.15 + 0.85 * white)  # oedema spreads along white matter and spares fluid
        oedema = _inside(depth - reach + 1.8 * inner) * not_fluid * (1 - core)
        return torch.stack([oedema, necrosis, core - necrosis])

    def add_to(self, tissue: BrainTissue) -> tuple[torch.Tensor, torch.Tensor]:
        """Fractions (6, size, size, size) with the lesion's three tissues last, and its label map (uint8)."""
        shares = self.shares(tissue)
        total = shares.sum(0)
        labels = _BRATS_LABELS[shares.argmax(0)] * ((total > 0.5) & tissue.mask)
        return torch.cat([tissue.fractions * (1 - total), shares]), labels


def _inside(signed_distance: torch.Tensor) -> torch.Tensor:
    """1 where the signed distance is negative, 0 where it is positive, smooth over the edge, exactly 0 far away."""
    share = torch.sigmoid(-signed_distance / _EDGE_MM)
    return torch.where(share < _NEGLIGIBLE, torch.zeros_like(share), share)


def draw_lesion(seed: int, anatomy: BrainAnatomy) -> Lesion:
    """The tumour of a seed, centred in deep white matter."""
    stream = RandomStream(seed, "lesion")
    centre = _draw_centre(stream, anatomy)
    radius_mm = stream.uniform(6, 17)
    push_mm = stream.uniform(1.5, 0.28 * (radius_mm + 6))
    shape = torch.eye(3) + 0.12 * torch.tensor([[stream.normal() for _ in range(3)] for _ in range(3)])
    fine = stream.field(1, _FIELD_GRID, 5.5, BRAIN_FOV_MM)
    coarse = stream.field(1, _FIELD_GRID, 9.0, BRAIN_FOV_MM)
    return Lesion(
        centre=centre,
        radius_mm=radius_mm,
        push_mm=push_mm,
        shape=shape,
        shell_mm=stream.uniform(1.5, min(6, 0.6 * radius_mm)),
        oedema_mm=stream.uniform(4, 16),
        boundary_noise=radius_mm * (0.2 * fine + 0.2 * coarse),
        inner_noise=stream.field(1, _FIELD_GRID, 7.0, BRAIN_FOV_MM),
    )


def _draw_centre(stream: RandomStream, anatomy: BrainAnatomy) -> torch.Tensor:
    """A point in mm in white matter with brain all around (a box of about 28 mm)."""
    tissue = anatomy.on_grid(_FIELD_GRID)
    surrounded = F.avg_pool3d(tissue.coverage[None, None], 7, 1, 3)[0, 0]
    allowed = (tissue.fractions[WM] > 0.5) & (surrounded > 0.97)
    candidates = voxel_centres(_FIELD_GRID, BRAIN_FOV_MM)[:, allowed]
    chosen = int(stream.uniform(0, candidates.shape[1]))
    return candidates[:, chosen] + torch.tensor([stream.uniform(-2, 2) for _ in range(3)])
