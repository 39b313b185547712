"""Residual networks in two and three dimensions with the strides, dilations and biases that published weights ask for.

Tensors are named as in torchvision (`layer1.0.conv1`, `downsample.0`). MONAI's and torchvision's networks fix what
differs here: where a block strides, dilations, biases and epsilon.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


@dataclass(frozen=True, kw_only=True)
class ResNetStyle:
    """What residual networks of one depth differ in.

    Attributes:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        strides: of the four layers.
        dilations: of their 3-wide convolutions.
        padded_shortcut: where the widths differ, the shortcut is padded with zero channels ("type A") instead of
            projected by a convolution ("type B").
        stride_first: a bottleneck strides in its first convolution (He 2016, Keras) instead of its second.
        bias: convolutions have a bias.
        epsilon: of the batch norms.
    """

    spatial_dims: int
    in_channels: int
    strides: tuple[int, int, int, int] = (1, 2, 2, 2)
    dilations: tuple[int, int, int, int] = (1, 1, 1, 1)
    padded_shortcut: bool = False
    stride_first: bool = False
    bias: bool = False
    epsilon: float = 1e-5

    def conv(self, before: int, after: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Module:
        """A convolution that keeps the grid, but for its stride."""
        kind = nn.Conv3d if self.spatial_dims == 3 else nn.Conv2d
        padding = dilation * (kernel // 2)
        return kind(before, after, kernel, stride, padding, dilation, bias=self.bias)

    def norm(self, channels: int) -> nn.Module:
        """A batch norm."""
        return (nn.BatchNorm3d if self.spatial_dims == 3 else nn.BatchNorm2d)(channels, eps=self.epsilon)


class ResNet(nn.Module):
    """A residual network without a head.

    Args:
        depth: 10, 18, 34 (basic blocks) or 50 (bottlenecks).
        style: see :class:`ResNetStyle`.
    """

    def __init__(self, depth: int, style: ResNetStyle) -> None:
        super().__init__()
        block: type[_Basic] | type[_Bottleneck] = _Bottleneck if depth >= 50 else _Basic
        self.num_features = 512 * block.expansion
        self.conv1 = style.conv(style.in_channels, 64, 7, stride=2)
        self.bn1 = style.norm(64)
        self.maxpool = (nn.MaxPool3d if style.spatial_dims == 3 else nn.MaxPool2d)(3, stride=2, padding=1)
        before = 64
        layers = []
        for level, blocks in enumerate(BLOCKS[depth]):
            width, dilation = 64 * 2**level, style.dilations[level]
            strides = (style.strides[level], *(1,) * (blocks - 1))
            widths = (before, *(width * block.expansion,) * (blocks - 1))
            layers.append(
                nn.Sequential(*(block(style, *pair, width, dilation) for pair in zip(widths, strides, strict=True)))
            )
            before = width * block.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = layers

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The last layer's map (batch, num_features, …) of images (batch, in_channels, …)."""
        hidden = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(hidden))))


class _Basic(nn.Module):
    expansion = 1

    def __init__(self, style: ResNetStyle, before: int, stride: int, width: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = style.conv(before, width, 3, stride, dilation)
        self.bn1 = style.norm(width)
        self.conv2 = style.conv(width, width, 3, 1, dilation)
        self.bn2 = style.norm(width)
        self.downsample = _shortcut(style, before, width, stride)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.bn1(self.conv1(hidden)))
        return F.relu(self.bn2(self.conv2(inner)) + self.downsample(hidden))


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, style: ResNetStyle, before: int, stride: int, width: int, dilation: int) -> None:
        super().__init__()
        first, second = (stride, 1) if style.stride_first else (1, stride)
        self.conv1 = style.conv(before, width, 1, first)
        self.bn1 = style.norm(width)
        self.conv2 = style.conv(width, width, 3, second, dilation)
        self.bn2 = style.norm(width)
        self.conv3 = style.conv(width, 4 * width, 1)
        self.bn3 = style.norm(4 * width)
        self.downsample = _shortcut(style, before, 4 * width, stride)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.bn1(self.conv1(hidden)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return F.relu(self.bn3(self.conv3(inner)) + self.downsample(hidden))


class _PaddedShortcut(nn.Module):
    """Every stride-th voxel, and channels of zeros for those that are missing."""

    def __init__(self, missing: int, stride: int) -> None:
        super().__init__()
        self.missing, self.stride = missing, stride

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        every = (slice(None), slice(None), *(slice(None, None, self.stride),) * (hidden.ndim - 2))
        return F.pad(hidden[every], [0, 0] * (hidden.ndim - 2) + [0, self.missing])


def _shortcut(style: ResNetStyle, before: int, after: int, stride: int) -> nn.Module:
    if stride == 1 and before == after:
        return nn.Identity()
    if style.padded_shortcut:
        return _PaddedShortcut(after - before, stride)
    return nn.Sequential(style.conv(before, after, 1, stride), style.norm(after))
