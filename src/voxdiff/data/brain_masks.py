"""Masks of a brain with a tumour: the tumour's labels, and a label for the rest of the brain.

Tumour labels alone leave the outline of the brain open. GEM-3D's masks have it from nnU-Net, which gives the outside of
the brain the label -1; here the outside stays 0 and the brain has a label of its own.
"""

import torch

OUTSIDE_LABEL = 0
TUMOUR_LABELS = (1, 2, 3)
"""BraTS 2023: necrotic core, oedema, enhancing tumour."""
BRAIN_LABEL = 4
BRAIN_MASK_VALUES: dict[int, float] = {0: -1.0, 4: -0.5, 2: 0.0, 1: 0.5, 3: 1.0}
"""What the networks see for each label."""


def brain_mask_labels(tissue: torch.Tensor, lesion: torch.Tensor) -> torch.Tensor:
    """The tumour's label where there is tumour, :data:`BRAIN_LABEL` in the rest of the brain, 0 outside.

    Args:
        tissue: Tissue map of any shape, 0 outside the brain.
        lesion: Tumour labels of the same shape, 0 where there is none.

    Returns:
        uint8 labels of the same shape.

    Raises:
        ValueError: If the shapes differ or a tumour label is not one of :data:`TUMOUR_LABELS`.
    """
    if tissue.shape != lesion.shape:
        raise ValueError(
            f"The tissue map has shape {tuple(tissue.shape)}, the lesion {tuple(lesion.shape)}; give maps of one grid."
        )
    # Files hold uint16 too, which torch does not compare
    tissue, lesion = tissue.double(), lesion.double()
    unknown = lesion[~torch.isin(lesion, lesion.new_tensor((0, *TUMOUR_LABELS)))]
    if unknown.numel():
        raise ValueError(f"The lesion holds the label {unknown[0].item():g}; it may hold 0, 1, 2 and 3.")
    brain = torch.where(tissue > 0, BRAIN_LABEL, OUTSIDE_LABEL)
    return torch.where(lesion > 0, lesion, brain).to(torch.uint8)
