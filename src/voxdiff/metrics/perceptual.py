"""Perceptual distance between volumes: LPIPS (Zhang 2018) on the slices of the three planes.

With VGG-16's published weights it is LPIPS. Those cannot be shipped; without them it runs on another network's feature
maps, and its name says so: values of the two are not comparable.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from voxdiff.metrics.extractors.base import FeatureExtractor, resize
from voxdiff.metrics.extractors.weights import Published, StateDict, file_sha256, load_strictly, read_weights
from voxdiff.metrics.similarity import draw_pairs

VGG = Published("vgg16", "vgg16-397923af.pth", "https://download.pytorch.org/models")
HEADS = Published("lpips-vgg", "vgg.pth", "https://github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1)")
_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = (2, 2, 3, 3, 3)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's, on the scale [-1, 1]


@dataclass(frozen=True)
class PerceptualBackbone:
    """Where perceptual distances are measured.

    Attributes:
        name: as it appears in reports: "lpips(vgg16)", or "lpips-substitute(…)".
        feature_maps: from images (batch, 1, height, width) in [0, 1] to a list of maps (batch, channels, …).
        weights: of the channels of each map, (channels,) each; None weighs all channels and maps alike.
        sha256: of the weight files.
        device: where it runs.
        smallest: pixels a side that an image needs.
    """

    name: str
    feature_maps: Callable[[torch.Tensor], Sequence[torch.Tensor]]
    weights: tuple[torch.Tensor, ...] | None
    sha256: str
    device: torch.device
    smallest: int = 1


def load_perceptual(
    weights: str | Path | None = None, *, heads: str | Path | None = None, device: str | torch.device = "cpu"
) -> PerceptualBackbone:
    """LPIPS where VGG's weights are given, else the substitute on cohort-2d, which is named so.

    Args:
        weights: as for :func:`vgg_backbone`; None asks for the substitute.
        heads: as for :func:`vgg_backbone`.
        device: where it runs.

    Raises:
        ValueError: heads are given without weights, or either does not fit.
        FileNotFoundError: weights are missing.
    """
    if weights is not None:
        return vgg_backbone(weights, heads=heads, device=device)
    if heads is not None:
        raise ValueError("LPIPS was given heads without VGG's weights; give both, or neither for the substitute.")
    from voxdiff.metrics.extractors.cohort import load_cohort_extractor

    return substitute_backbone(load_cohort_extractor("cohort-2d").to(device))


def vgg_backbone(
    weights: str | Path | None, *, heads: str | Path | None = None, device: str | torch.device = "cpu"
) -> PerceptualBackbone:
    """LPIPS as published: VGG-16 and the linear heads of version 0.1.

    Args:
        weights: safetensors file that `voxdiff convert-extractor vgg16` wrote from torchvision's checkpoint.
        heads: safetensors file that `voxdiff convert-extractor lpips-vgg` wrote; None takes those that torchmetrics
            ships.
        device: where it runs.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: the weights are a pickle or another network's.
        ModuleNotFoundError: torchmetrics is not installed and no heads are given.
    """
    state, sha256 = read_weights(weights, VGG)
    network = build_vgg16(state).to(device)
    if heads is None:
        path = _shipped_heads()
        head_state, head_sha256 = torch.load(path, "cpu", weights_only=True), file_sha256(path)
    else:
        head_state, head_sha256 = read_weights(heads, HEADS)
    return PerceptualBackbone(
        name="lpips(vgg16)",
        feature_maps=network.feature_maps,
        weights=tuple(weight.to(device) for weight in build_heads(head_state)),
        sha256=f"{sha256}+{head_sha256}",
        device=torch.device(device),
        smallest=16,
    )


def substitute_backbone(extractor: FeatureExtractor) -> PerceptualBackbone:
    """Unweighted perceptual distance on the maps of a slice extractor, for when VGG's weights are not at hand.

    Args:
        extractor: 2D, with a network that has `feature_maps(images) -> list of maps`, such as "cohort-2d".

    Raises:
        ValueError: the extractor reads volumes, or its network has no `feature_maps`.
    """
    feature_maps = getattr(extractor.network, "feature_maps", None)
    if extractor.spatial_dims != 2 or feature_maps is None:
        raise ValueError(
            f"The extractor {extractor.name} cannot stand in for VGG: it must read slices and have feature_maps, as "
            "cohort-2d does."
        )
    size = extractor.input_size
    return PerceptualBackbone(
        name=f"lpips-substitute({extractor.name})",
        feature_maps=lambda images: feature_maps(images if size is None else resize(images, size)),
        weights=None,
        sha256=extractor.sha256,
        device=extractor.device,
    )


@torch.inference_mode()
def lpips(
    volumes: torch.Tensor,
    others: torch.Tensor,
    *,
    backbone: PerceptualBackbone,
    slice_step: int = 1,
    batch_size: int = 64,
) -> torch.Tensor:
    """Perceptual distance of volumes, pair by pair: the mean over slices, then over the three planes ("2.5D").

    Slices without foreground count too, with 0 where both are blank.

    Args:
        volumes: (batch, 1, x, y, z) in [0, 1].
        others: the same shape.
        backbone: from :func:`vgg_backbone` or :func:`substitute_backbone`; its name belongs beside every number.
        slice_step: every slice, or every second one, …; with VGG-16 and all slices, a pair at 64³ takes 11 s of one core.
        batch_size: slices that the network sees at once.

    Returns:
        (batch,), 0 for equal volumes.

    Raises:
        ValueError: the shapes differ, there are several channels, or the slices are too small for the network.
    """
    if volumes.shape != others.shape or volumes.ndim != 5 or volumes.shape[1] != 1:
        raise ValueError(
            f"LPIPS was asked of volumes {tuple(volumes.shape)} and {tuple(others.shape)}; give (batch, 1, x, y, z) twice."
        )
    if min(volumes.shape[2:]) < backbone.smallest:
        raise ValueError(
            f"{backbone.name} was given volumes {tuple(volumes.shape[2:])}; it needs {backbone.smallest} voxels a side."
        )
    return torch.stack(
        [
            torch.stack([_plane_distance(first, second, axis, backbone, slice_step, batch_size) for axis in range(3)])
            for first, second in zip(volumes[:, 0], others[:, 0], strict=True)
        ]
    ).mean(1)


def pairwise_lpips(volumes: torch.Tensor, *, max_pairs: int = 100, seed: int = 0, **settings) -> torch.Tensor:
    """Perceptual distance of random pairs within a set: low means little diversity; compare with that of real volumes.

    Args:
        volumes: (number, 1, x, y, z) in [0, 1], at least two.
        max_pairs: all pairs if there are no more than this, else as many drawn without repetition.
        seed: of the draw.
        settings: as for :func:`lpips`, the backbone among them.

    Returns:
        (pairs,).

    Raises:
        ValueError: fewer than two volumes.
    """
    pairs = draw_pairs(len(volumes), max_pairs, seed)
    return torch.cat([lpips(volumes[[first]], volumes[[second]], **settings) for first, second in pairs.tolist()])


def slice_lpips(images: torch.Tensor, others: torch.Tensor, backbone: PerceptualBackbone) -> torch.Tensor:
    """Perceptual distance (batch,) of images (batch, 1, height, width) in [0, 1], pair by pair."""
    distance = torch.zeros(len(images), device=backbone.device)
    maps = [backbone.feature_maps(item.to(backbone.device, torch.float32)) for item in (images, others)]
    for level, (first, second) in enumerate(zip(*maps, strict=True)):
        difference = (_unit_channels(first) - _unit_channels(second)).square().mean((2, 3))
        weights = None if backbone.weights is None else backbone.weights[level]
        distance += difference.sum(1) / len(maps[0]) if weights is None else difference @ weights
    return distance.cpu()


class Vgg16(nn.Module):
    """The convolutions of VGG-16, up to the last map that LPIPS reads; tensors are named as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width, count in zip(_WIDTHS, _CONVOLUTIONS, strict=True):
            layers += [nn.MaxPool2d(2)] if layers else []
            for _ in range(count):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
        self.features = nn.Sequential(*layers)

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The maps before each pooling and the last, of grey images (batch, 1, height, width) in [0, 1]."""
        shift, scale = (torch.tensor(values, device=images.device)[:, None, None] for values in (_SHIFT, _SCALE))
        hidden, maps = (2 * images - 1 - shift) / scale, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(hidden)
            hidden = layer(hidden)
        return [*maps, hidden]


def build_vgg16(state: StateDict) -> Vgg16:
    """The network with all of the tensors and no others.

    Raises:
        ValueError: the tensors are another network's.
    """
    network = Vgg16()
    load_strictly(network, state, VGG.name)
    return network.eval().requires_grad_(False)


def build_heads(state: StateDict) -> list[torch.Tensor]:
    """The channel weights of the five maps, from the tensors `lin0.model.1.weight` to `lin4.model.1.weight`.

    Raises:
        ValueError: the tensors are others.
    """
    expected = {f"lin{level}.model.1.weight": (1, width, 1, 1) for level, width in enumerate(_WIDTHS)}
    if {key: tuple(tensor.shape) for key, tensor in state.items()} != expected:
        raise ValueError(
            f"The LPIPS heads hold {', '.join(state) or 'nothing'}; they need {', '.join(expected)} for VGG-16."
        )
    return [state[key].flatten() for key in expected]


def _plane_distance(
    volume: torch.Tensor, other: torch.Tensor, axis: int, backbone: PerceptualBackbone, step: int, batch_size: int
) -> torch.Tensor:
    slices, other_slices = (item.movedim(axis, 0)[::step, None].split(batch_size) for item in (volume, other))
    return torch.cat([slice_lpips(*pair, backbone) for pair in zip(slices, other_slices, strict=True)]).mean()


def _unit_channels(maps: torch.Tensor) -> torch.Tensor:
    return maps / (maps.square().sum(1, keepdim=True) + 1e-8).sqrt()


def _shipped_heads() -> Path:
    package = find_spec("torchmetrics")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(
            "LPIPS takes its linear heads from torchmetrics: pip install torchmetrics, or give heads=."
        )
    return Path(package.submodule_search_locations[0], "functional", "image", "lpips_models", "vgg.pth")
