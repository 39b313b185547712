"""RadImageNet's ResNet-50 (Mei 2022) for slices, as it was published twice.

"keras": Warvito/radimagenet-models, converted from Keras (biases, stride in the first convolution of a block), which
MONAI's FID recipe, GEM-3D and MAISI use: three equal channels in the order B, G, R minus their ImageNet means.
"torchvision": the authors' own PyTorch weights (keys `backbone.0.weight`, …), fed with [-1, 1].
The two are different networks with different features; which one a file holds is read off its tensors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from voxdiff.metrics.extractors.base import FeatureExtractor, Features
from voxdiff.metrics.extractors.resnet import ResNet, ResNetStyle
from voxdiff.metrics.extractors.weights import Published, StateDict, load_strictly, read_weights

NAME = "radimagenet-resnet50"
STYLES = {
    "keras": ResNetStyle(spatial_dims=2, in_channels=3, stride_first=True, bias=True, epsilon=1.001e-5),
    "torchvision": ResNetStyle(spatial_dims=2, in_channels=3),
}
_MEANS_BGR = (0.406, 0.456, 0.485)


@dataclass(kw_only=True)
class RadImageNetExtractor(FeatureExtractor):
    """Means of the last map, 2048 features a slice.

    Attributes:
        layout: "keras" or "torchvision", which also fixes how images are fed.
    """

    layout: str

    def settings(self) -> dict[str, Any]:
        """What pins the extractor in a report, as plain values."""
        return {**super().settings(), "layout": self.layout}

    def forward(self, images: torch.Tensor) -> Features:
        """Features (batch, 2048) of slices (batch, 1, height, width) in [0, 1]."""
        images = images.expand(-1, 3, -1, -1)
        if self.layout == "keras":
            images = images - torch.tensor(_MEANS_BGR, device=images.device)[:, None, None]
        else:
            images = 2 * images - 1
        return Features(self.network(images).mean((2, 3)))


def load_radimagenet(*, weights: str | Path | None, device: str | torch.device = "cpu") -> RadImageNetExtractor:
    """RadImageNet's ResNet-50 with published weights; slices keep their own size, as in the published FIDs.

    Args:
        weights: safetensors file that `voxdiff convert-extractor` wrote.
        device: where it runs.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: the weights are a pickle or another network's.
    """
    published = Published(
        NAME, "RadImageNet-ResNet50_notop.pth", "https://github.com/Warvito/radimagenet-models (torch.hub)"
    )
    state, sha256 = read_weights(weights, published)
    return RadImageNetExtractor(
        name=NAME,
        network=build_radimagenet(state).to(device),
        spatial_dims=2,
        num_features=2048,
        sha256=sha256,
        layout=_layout(state),
        note="trained to classify CT, MR and ultrasound slices",
    )


def build_radimagenet(state: StateDict) -> ResNet:
    """The network with all of the tensors and no others.

    Raises:
        ValueError: the tensors are another network's.
    """
    network = ResNet(50, STYLES[_layout(state)])
    load_strictly(network, state, NAME)
    return network


def _layout(state: StateDict) -> str:
    return "keras" if "conv1.bias" in state else "torchvision"
