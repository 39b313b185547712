"""Synthetic volumes that tests of privacy share."""

import torch
import torch.nn.functional as F


def random_volumes(number: int, seed: int, size: int = 24) -> torch.Tensor:
    """Textured balls, each with a texture of its own: (number, 1, size, size, size) in [0, 1]."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand((number, 1, size // 4, size // 4, size // 4), generator=random)
    texture = F.interpolate(coarse, size=(size,) * 3, mode="trilinear", align_corners=True)
    axis = torch.linspace(-1, 1, size)
    radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    return (0.1 + 0.9 * texture) * torch.sigmoid(25 * (0.75 - radius))
