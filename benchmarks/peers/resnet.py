"""ResNet-101 in plain torch, as the training benchmark uses it.

Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR
2016; with the stride in the 3x3 convolution, as most implementations have it.
"""

from __future__ import annotations

import torch
from torch import nn

PARAMETERS = 44_549_160  # 178.2 MB of float32
_BLOCKS = (3, 4, 23, 3)


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(outputs)]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, around which the input goes past."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            *_conv(inputs, width, 1),
            nn.ReLU(inplace=True),
            *_conv(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *_conv(width, outputs, 1),
        )
        same = inputs == outputs and stride == 1
        self.past = (
            nn.Identity() if same else nn.Sequential(*_conv(inputs, outputs, 1, stride))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu_(self.body(x) + self.past(x))


def resnet101(classes: int = 1000) -> nn.Sequential:
    """Images (N, 3, H, W) to logits (N, classes)."""
    layers: list[nn.Module] = [
        *_conv(3, 64, 7, 2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for stage, blocks in enumerate(_BLOCKS):
        width = 64 << stage
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(Bottleneck(inputs, width, stride))
            inputs = 4 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(*layers)
