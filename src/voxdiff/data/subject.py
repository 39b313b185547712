"""One simulated subject: a pure function of its seed.

Each part of a subject has its own random stream, so that another contrast, a lesion, a forced template or another grid
size leaves everything else about the patient as it was. Nothing here is a real patient: everything is simulated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from voxdiff.data.anatomy import BRAIN_FOV_MM, BRAIN_TEMPLATES, BrainTissue, draw_brain
from voxdiff.data.ct_anatomy import CT_FOV_MM, CT_TEMPLATE, draw_ct
from voxdiff.data.lesions import Lesion, draw_lesion
from voxdiff.data.mr_signal import MR_CONTRASTS, draw_acquisition, draw_tissue_properties
from voxdiff.volumes import centred_affine

COHORT_VERSIONS = {"mr": "synthetic_brain_v0", "ct": "synthetic_ct_v0"}
MODALITIES = tuple(COHORT_VERSIONS)
MR_LEVELS = 4095  # images have 12 bits, as scanners store them
REFERENCE_SIZE = 64  # factors and the intensity scale are measured on this grid, whatever grid is asked for
_SCALE_PERCENTILE = 99.5
_LESION_HEADROOM = 1.15  # texture, bias and noise lift a lesion above its mean signal


@dataclass(frozen=True)
class Subject:
    """A simulated subject on a cubic grid, RAS, its centre at 0 mm.

    Attributes:
        seed: the seed it is a function of.
        modality: "mr" or "ct".
        images: contrast to float32 tensor (x, y, z). MR: [0, 1] in steps of 1/4095; CT: whole HU.
        labels: name to uint8 tensor (x, y, z): "tissue" and "lesion" for MR, "organs" for CT.
        factors: known ground truth: template, volumes in ml, lengths in mm.
        affine: (4, 4) voxel to mm.
        unit: "a.u." or "HU".
    """

    seed: int
    modality: str
    images: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    factors: dict[str, Any]
    affine: np.ndarray
    unit: str


def make_subject(
    seed: int,
    *,
    size: int = 64,
    contrasts: Sequence[str] = ("t1",),
    lesions: bool = False,
    template: str | None = None,
    modality: str = "mr",
) -> Subject:
    """Simulate the subject of a seed.

    Args:
        seed: any whole number from 0.
        size: voxels a side, even, from 16 to 256. The field of view is 208 mm (brain) or 384 mm (CT).
        contrasts: for MR, some of "t1", "t1gd", "t2", "flair"; all of the same patient.
        lesions: give the patient a tumour (MR only).
        template: "mni152" or "colin27" instead of the one the seed draws (MR only).
        modality: "mr" (brain) or "ct" (abdomen, image "ct" in HU; `contrasts` does not apply).

    Raises:
        ValueError: a value outside of those above.
    """
    check_settings(size=size, contrasts=contrasts, lesions=lesions, template=template, modality=modality)
    if seed < 0:
        raise ValueError(f"The seed is {seed}; a seed is a whole number from 0, choose one.")
    if modality == "ct":
        return _ct_subject(seed, size)
    return _mr_subject(seed, size, tuple(contrasts), lesions, template)


def check_settings(*, size: int, contrasts: Sequence[str], lesions: bool, template: str | None, modality: str) -> None:
    """Raise a ValueError of one sentence for settings that no subject can have."""
    if modality not in MODALITIES:
        raise ValueError(f"The modality is {modality!r}; choose one of {', '.join(MODALITIES)}.")
    if size % 2 or not 16 <= size <= 256:
        raise ValueError(f"The size is {size}; choose an even number of voxels from 16 to 256.")
    if modality == "ct":
        if lesions:
            raise ValueError(
                "Lesions were asked for with modality 'ct'; they exist for 'mr' only, drop one of the two."
            )
        if template is not None:
            raise ValueError(f"Template {template!r} was asked for with modality 'ct', which has one only; drop it.")
        if tuple(contrasts) not in ((), ("ct",), ("t1",)):  # ("t1",) is the default
            raise ValueError(f"Contrasts {contrasts!r} were asked for with modality 'ct', which has none; drop them.")
        return
    if not contrasts or isinstance(contrasts, str):
        raise ValueError(f"The contrasts are {contrasts!r}; give a list of some of {', '.join(MR_CONTRASTS)}.")
    for contrast in contrasts:
        if contrast not in MR_CONTRASTS:
            raise ValueError(f"Contrast {contrast!r} is not known; choose among {', '.join(MR_CONTRASTS)}.")
    if template is not None and template not in BRAIN_TEMPLATES:
        raise ValueError(f"Template {template!r} is not known; choose one of {', '.join(BRAIN_TEMPLATES)}.")


def _mr_subject(seed: int, size: int, contrasts: tuple[str, ...], lesions: bool, template: str | None) -> Subject:
    anatomy = draw_brain(seed, template)
    reference = anatomy.on_grid(REFERENCE_SIZE)
    factors: dict[str, Any] = {
        "template": anatomy.template.name,
        "mirrored": int(anatomy.mirrored),
        "ventricle_mm": anatomy.ventricle_mm,
        **reference.volumes_ml(),
    }
    lesion = draw_lesion(seed, anatomy) if lesions else None
    if lesion is None:
        tissue = reference if size == REFERENCE_SIZE else anatomy.on_grid(size)
        fractions, labels = tissue.fractions, {"tissue": tissue.labels()}
    else:
        tissue = anatomy.on_grid(size, lesion.displaced_points(size))
        fractions, lesion_labels = lesion.add_to(tissue)
        labels = {"tissue": tissue.labels(), "lesion": lesion_labels}
        at_reference = anatomy.on_grid(REFERENCE_SIZE, lesion.displaced_points(REFERENCE_SIZE))
        factors |= _lesion_factors(lesion, at_reference)
    images = _scan(seed, contrasts, reference, tissue, fractions)
    return Subject(seed, "mr", images, labels, factors, _affine(size, BRAIN_FOV_MM), "a.u.")


def _scan(
    seed: int, contrasts: tuple[str, ...], reference: BrainTissue, tissue: BrainTissue, fractions: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Images in [0, 1], on a scale that neither the grid nor a lesion changes.

    1 is the 99.5th percentile of the patient's lesion-free scan on the reference grid. FLAIR and T1Gd keep room above
    it for the lesion a patient may have, which would be clipped otherwise.
    """
    properties = draw_tissue_properties(seed)
    texture, reference_texture = (properties.texture(grid.coverage.shape[-1]) for grid in (tissue, reference))
    images = {}
    for contrast in contrasts:
        acquisition = draw_acquisition(seed, contrast, properties)
        image = acquisition.scan(fractions, tissue.coverage, texture)
        if fractions is reference.fractions:
            scale_image = image
        else:
            scale_image = acquisition.scan(reference.fractions, reference.coverage, reference_texture)
        scale = float(np.percentile(scale_image[reference.mask].numpy(), _SCALE_PERCENTILE))
        if contrast in ("flair", "t1gd"):
            scale = max(scale, _LESION_HEADROOM * acquisition.brightest_lesion(reference.mask))
        images[contrast] = (image * (MR_LEVELS / scale)).round().clamp(0, MR_LEVELS) / MR_LEVELS
    return images


def _lesion_factors(lesion: Lesion, tissue: BrainTissue) -> dict[str, float]:
    """Size and place of the tumour, partial volumes included."""
    voxel_ml = (BRAIN_FOV_MM / tissue.coverage.shape[-1]) ** 3 / 1000
    oedema, necrosis, enhancing = (
        float(part.sum()) * voxel_ml for part in lesion.shares(tissue) * (tissue.coverage * tissue.mask)
    )
    x, y, z = lesion.centre.tolist()
    return {
        "lesion_radius_mm": lesion.radius_mm,
        "lesion_volume_ml": oedema + necrosis + enhancing,
        "lesion_necrosis_ml": necrosis,
        "lesion_oedema_ml": oedema,
        "lesion_enhancing_ml": enhancing,
        "lesion_x_mm": x,
        "lesion_y_mm": y,
        "lesion_z_mm": z,
    }


def _ct_subject(seed: int, size: int) -> Subject:
    anatomy = draw_ct(seed)
    return Subject(
        seed=seed,
        modality="ct",
        images={"ct": anatomy.scan(size)},
        labels={"organs": anatomy.organ_labels(size)},
        factors={"template": CT_TEMPLATE, **anatomy.factors(REFERENCE_SIZE)},
        affine=_affine(size, CT_FOV_MM),
        unit="HU",
    )


def _affine(size: int, fov_mm: float) -> np.ndarray:
    return centred_affine((size,) * 3, "RAS", (fov_mm / size,) * 3)
