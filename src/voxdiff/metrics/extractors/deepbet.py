"""The encoder of deepbet (Fisch 2023), a brain extraction network for T1w heads: features that never saw our simulator.

The weights come with the package (`pip install --no-deps deepbet==1.0.2`, MIT) as TorchScript; its Python code and
dependencies are not needed. A volume's features are the means and standard deviations of the first three encoder
stages, unscaled: their variances are spread over about 100 of the 224, so that none governs a distance. With 40 against
40 simulated subjects at 64³, a blur of one voxel moves KID by 40 standard deviations of its value between real sets; with
the fourth stage in place of the first, by 3.
"""

from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from voxdiff.metrics.extractors.base import FeatureExtractor
from voxdiff.metrics.extractors.weights import file_sha256

_MODEL = "data/models/bbox_model.pt"
_SIZE = 64
_MULTIPLE = 32  # five halvings in all


class DeepbetEncoder(nn.Module):
    """Means and standard deviations of the first three encoder stages of a deepbet network.

    Args:
        network: the TorchScript module.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (batch, 224) of T1w volumes (batch, 1, x, y, z)."""
        network: Any = self.network
        relu = getattr(network.conv, "2")  # the one activation that the traced modules share
        hidden = network.init.forward(relu, standardise(images))
        values = []
        for stage in (network.down0, network.down1, network.down2):
            hidden = stage.forward(relu, hidden)
            values += [hidden.mean((2, 3, 4)), hidden.std((2, 3, 4))]
        return torch.cat(values, 1)


def load_deepbet(*, size: int = _SIZE, device: str | torch.device = "cpu") -> FeatureExtractor:
    """The encoder of the installed deepbet.

    Args:
        size: voxels a side of the grid that volumes are brought to; 128 is the network's own and takes six times
            as long.
        device: where it runs.

    Raises:
        ValueError: the grid is too small.
        ModuleNotFoundError: deepbet is not installed.
    """
    if size < _MULTIPLE or size % _MULTIPLE:
        raise ValueError(f"deepbet was given a grid of {size} voxels a side; give a multiple of 32.")
    path = _weight_file()
    return FeatureExtractor(
        name="deepbet" if size == _SIZE else f"deepbet:{size}",
        network=DeepbetEncoder(torch.jit.load(path, map_location=device)),
        spatial_dims=3,
        num_features=224,
        sha256=file_sha256(path),
        input_size=(size, size, size),
        note="T1w only; blind to the global intensity scale",
    )


def standardise(images: torch.Tensor) -> torch.Tensor:
    """As deepbet feeds itself: clipped between two percentiles, then a fixed mean and deviation in each volume."""
    low, high = torch.quantile(images.flatten(1), torch.tensor([0.005, 0.995], device=images.device), dim=1)
    low, high = (bound.reshape(-1, 1, 1, 1, 1) for bound in (low, high))
    images = ((images - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    images = images - images.mean((1, 2, 3, 4), keepdim=True)
    return 0.449 + 0.226 * images / images.std((1, 2, 3, 4), keepdim=True).clamp_min(1e-6)


def _weight_file() -> Path:
    try:
        path = Path(str(metadata.distribution("deepbet").locate_file(_MODEL)))
    except metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            "The extractor deepbet needs the weights of its package: pip install --no-deps deepbet==1.0.2."
        ) from error
    if not path.is_file():
        raise ModuleNotFoundError(
            f"The installed deepbet {metadata.version('deepbet')} has no {_MODEL}; pip install --no-deps deepbet==1.0.2."
        )
    return path
