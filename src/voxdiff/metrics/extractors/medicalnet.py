"""MedicalNet's 3D residual networks (Chen 2019, "Med3D"), the extractor behind most 3D FIDs of the field.

The published network is a segmentation backbone: its third and fourth layers do not stride but dilate, by 2 and 4
(MONAI's `resnet50` strides there, and gives other features with the same weights). Features are the means of the last
map: 2048 for ResNet-50, 512 for the smaller ones.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from voxdiff.metrics.extractors.base import FeatureExtractor, Features
from voxdiff.metrics.extractors.resnet import ResNet, ResNetStyle
from voxdiff.metrics.extractors.weights import Published, StateDict, load_strictly, read_weights

INPUT_RULES = ("zscore", "unit", "signed")
DEPTHS = (10, 18, 34, 50)
_ADDRESS = "https://huggingface.co/TencentMedicalNet"


@dataclass(kw_only=True)
class MedicalNetExtractor(FeatureExtractor):
    """Means of the last map.

    Attributes:
        input_rule: what becomes of [0, 1]. "zscore": zero mean, unit deviation over the whole volume, nearest to the
            training data, whose zero voxels were filled with noise (a rule that tells 0 from 0.001 in the background
            would tell real from synthetic volumes by it). "unit": left as it is, as WDM's script does. "signed":
            [-1, 1], as in HA-GAN's script, which 3D MedDiffusion used.
    """

    input_rule: str = "zscore"

    def settings(self) -> dict[str, Any]:
        """What pins the extractor in a report, as plain values."""
        return {**super().settings(), "input_rule": self.input_rule}

    def forward(self, images: torch.Tensor) -> Features:
        """Features (batch, 512 or 2048) of volumes (batch, 1, x, y, z) in [0, 1]."""
        if self.input_rule == "zscore":
            images = images - images.mean((1, 2, 3, 4), keepdim=True)
            images = images / images.std((1, 2, 3, 4), keepdim=True).clamp_min(1e-6)
        elif self.input_rule == "signed":
            images = 2 * images - 1
        return Features(self.network(images).mean((2, 3, 4)))


def load_medicalnet(
    depth: int = 50, *, weights: str | Path | None, input_rule: str = "zscore", device: str | torch.device = "cpu"
) -> MedicalNetExtractor:
    """A MedicalNet extractor with published weights.

    Args:
        depth: 10, 18, 34 or 50.
        weights: safetensors file that `voxdiff convert-extractor` wrote from resnet_50.pth (8 data sets) or
            resnet_50_23dataset.pth; reports tell the two apart by their SHA-256.
        input_rule: "zscore", "unit" or "signed", see :class:`MedicalNetExtractor`.
        device: where it runs.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: the rule is unknown, or the weights are a pickle or another network's.
    """
    if input_rule not in INPUT_RULES:
        raise ValueError(f"MedicalNet was given the input rule {input_rule!r}; allowed are {', '.join(INPUT_RULES)}.")
    name = f"medicalnet-resnet{depth}"
    state, sha256 = read_weights(
        weights, Published(name, f"resnet_{depth}.pth", f"{_ADDRESS}/MedicalNet-Resnet{depth}")
    )
    network = build_medicalnet(depth, state)
    return MedicalNetExtractor(
        name=name if input_rule == INPUT_RULES[0] else f"{name}:{input_rule}",
        network=network.to(device),
        spatial_dims=3,
        num_features=network.num_features,
        sha256=sha256,
        input_rule=input_rule,
        note="trained to segment CT and MR of many organs; the features depend on the input rule",
    )


def build_medicalnet(depth: int, state: StateDict) -> ResNet:
    """The backbone with all of the tensors and no others.

    Raises:
        ValueError: the tensors are another network's.
    """
    padded = depth in (18, 34)  # published with shortcut type A
    style = ResNetStyle(
        spatial_dims=3, in_channels=1, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), padded_shortcut=padded
    )
    network = ResNet(depth, style)
    load_strictly(network, state, f"medicalnet-resnet{depth}")
    return network
