"""The backbones of the papers' tables, with the names of their usual public definitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class Block(nn.Module):
    """A residual block: convolutions beside a shortcut, which is a 1x1 convolution where sizes change."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def branch(self, x: Tensor) -> Tensor:
        """Return what the convolutions make of the input."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.branch(x) + shortcut)
        return out


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def branch(self, x: Tensor) -> Tensor:
        """Return what the convolutions make of the input."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))  # type: ignore[no-any-return]


class Bottleneck(Block):
    """A 3x3 convolution, which takes the stride, between two 1x1 ones."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)

    def branch(self, x: Tensor) -> Tensor:
        """Return what the convolutions make of the input."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))  # type: ignore[no-any-return]


class DepthwiseBottleneck(Bottleneck):
    """The bottleneck of ResNet-50-DW of the DK paper: its 3x3 convolution depth-wise, of twice the width."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride)
        outputs, width = 4 * width, 2 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)


class ResNet(nn.Module):
    """A residual network of four stages (CVPR 2016), from RGB to `classes` scores."""

    def __init__(
        self,
        block: type[Block],
        layers: Sequence[int],
        classes: int = 1000,
        *,
        widths: Sequence[int] = (64, 128, 256, 512),
    ) -> None:
        super().__init__()
        inputs = widths[0]
        self.conv1 = nn.Conv2d(3, inputs, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        stages = []
        for stage, (blocks, width) in enumerate(zip(layers, widths, strict=True)):
            chain: list[nn.Module] = []
            for i in range(blocks):
                chain.append(block(inputs, width, 2 if stage and not i else 1))
                inputs = width * block.expansion
            stages.append(nn.Sequential(*chain))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (N, classes) of images (N, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        scores: Tensor = self.fc(self.avgpool(x).flatten(1))
        return scores


def resnet(depth: int, **options: Any) -> ResNet:
    """Return the ResNet of 18, 50 or 101 layers."""
    block, layers = {
        18: (BasicBlock, (2, 2, 2, 2)),
        50: (Bottleneck, (3, 4, 6, 3)),
        101: (Bottleneck, (3, 4, 23, 3)),
    }[depth]
    return ResNet(block, layers, **options)


class InvertedResidual(nn.Module):
    """A 1x1 convolution that widens, a depth-wise 3x3 one, and a 1x1 one that narrows."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_conv_norm_relu(inputs, width, 1))
        layers += [
            _conv_norm_relu(width, width, 3, stride, groups=width),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """A network of inverted residuals (CVPR 2018), from RGB to `classes` scores."""

    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, classes: int = 1000, *, stages: Sequence[tuple[int, int, int, int]] = STAGES) -> None:
        super().__init__()
        inputs, outputs = 32, 1280
        features: list[nn.Module] = [_conv_norm_relu(3, inputs, 3, 2)]
        for expansion, width, blocks, stride in stages:
            for i in range(blocks):
                features.append(InvertedResidual(inputs, width, 1 if i else stride, expansion))
                inputs = width
        features.append(_conv_norm_relu(inputs, outputs, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(outputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (N, classes) of images (N, 3, H, W)."""
        scores: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return scores


def on_meta(make: Callable[[], Network]) -> Network:
    """Return a network that has shapes and no numbers."""
    with torch.device("meta"):
        return make()


def _conv_norm_relu(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))
