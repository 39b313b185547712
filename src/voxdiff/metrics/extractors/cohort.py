"""The cohort extractors: small residual networks that read the known factors of simulated subjects off their images.

They were trained on voxdiff's digital cohort to tell contrast, template and lesion (the classes), anatomical volumes, and
how much blur, noise and change of intensity was applied; `training_scripts/train_cohort_extractors.py` is the recipe,
and their cards are in `model_cards/cohort-3d` and `model_cards/cohort-2d`.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from voxdiff.metrics.extractors.base import FeatureExtractor, Features
from voxdiff.shipped import find_shipped

NAMES = ("cohort-3d", "cohort-2d")
_NOTE = "trained on voxdiff's simulated cohort"
_WEIGHTS = "model.safetensors"


class CohortEncoder(nn.Module):
    """A residual network with batch normalisation, which unlike other norms leaves the intensity scale visible.

    Args:
        spatial_dims: 2 or 3.
        widths: channels of each level; each level halves the grid.
        num_classes: outputs of the classifier.
    """

    def __init__(self, spatial_dims: int, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        conv, norm = (nn.Conv3d, nn.BatchNorm3d) if spatial_dims == 3 else (nn.Conv2d, nn.BatchNorm2d)
        before = [1, *widths[:-1]]
        self.levels = nn.ModuleList(_Level(conv, norm, *pair) for pair in zip(before, widths, strict=True))
        self.classifier = nn.Linear(sum(widths), num_classes)

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(batch, channels, …) of each level, finest first."""
        maps, hidden = [], images
        for level in self.levels:
            hidden = level(hidden)
            maps.append(hidden)
        return maps

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (batch, sum of widths) and logits (batch, num_classes) of images (batch, 1, …) in [0, 1].

        The features are the means of every level's channels: the fine levels see blur and noise, the coarse ones anatomy.
        """
        features = torch.cat([hidden.flatten(2).mean(2) for hidden in self.feature_maps(images)], dim=1)
        return features, self.classifier(features)


class _Level(nn.Module):
    """Halves the grid, then one residual block."""

    def __init__(self, conv: type[nn.Module], norm: type[nn.Module], before: int, after: int) -> None:
        super().__init__()
        self.down = conv(before, after, 3, stride=2, padding=1, bias=False)
        self.norm_down = norm(after)
        self.conv1 = conv(after, after, 3, padding=1, bias=False)
        self.norm1 = norm(after)
        self.conv2 = conv(after, after, 3, padding=1, bias=False)
        self.norm2 = norm(after)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.norm_down(self.down(hidden)))
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(hidden)))))
        return F.relu(hidden + residual)


class CohortExtractor(FeatureExtractor):
    """Features of all levels; probabilities of the joint class of contrast, template and lesion."""

    def forward(self, images: torch.Tensor) -> Features:
        """Features and class probabilities of images in [0, 1]."""
        values, logits = self.network(images)
        return Features(values, logits.softmax(dim=1))


def load_cohort_extractor(name: str, folder: str | Path | None = None) -> CohortExtractor:
    """A cohort extractor that comes with voxdiff, or one trained anew.

    Args:
        name: "cohort-3d" (64³ volumes) or "cohort-2d" (64² slices of any plane).
        folder: where its `config.json` and `model.safetensors` lie, if not with voxdiff.

    Raises:
        FileNotFoundError: this installation does not hold the weights.
        RuntimeError: the weights are not those of the network in the config.
    """
    found = Path(folder) if folder is not None else find_shipped(name, _WEIGHTS)
    if found is None or not (found / _WEIGHTS).is_file():
        raise FileNotFoundError(
            f"The weights of the extractor {name!r} are not in {found or 'this installation'}; known are "
            f"{', '.join(NAMES)}, reinstall voxdiff or train it with training_scripts/train_cohort_extractors.py."
        )
    config = json.loads((found / "config.json").read_text(encoding="utf-8"))
    network = CohortEncoder(config["spatial_dims"], config["widths"], len(config["classes"]))
    # Stored in 16 bits; statistics in 32 keep a volume's features independent of the batch it came in.
    network.load_state_dict({key: value.float() for key, value in load_file(found / _WEIGHTS).items()})
    return CohortExtractor(
        name=name,
        network=network,
        spatial_dims=config["spatial_dims"],
        num_features=sum(config["widths"]),
        sha256=hashlib.sha256((found / _WEIGHTS).read_bytes()).hexdigest(),
        input_size=tuple(config["input_size"]),
        classes=tuple(config["classes"]),
        note=_NOTE,
    )
